"""Any model on held-out problems: completions, verdicts, figures with intervals, and comparisons of two models.

    `plan` -> `completions` (a model that answers) -> `work` (shards that outlive a kill: `unfinished`) -> `scores` -> `tables`

`benchmarks` names the data sets of mathematics, `contamination` asks what a model knows by heart, `audit` grades a second time.
"""

from tinyzero_trl.evaluation.benchmarks import BENCHMARKS, chosen, load
from tinyzero_trl.evaluation.completions import opened
from tinyzero_trl.evaluation.evaluating import evaluate, main, verified
from tinyzero_trl.evaluation.plan import Settings
from tinyzero_trl.evaluation.scores import Sample
from tinyzero_trl.evaluation.tables import is_share, shown_p, too_small

__all__ = [
    "BENCHMARKS",
    "Sample",
    "Settings",
    "chosen",
    "evaluate",
    "is_share",
    "load",
    "main",
    "opened",
    "shown_p",
    "too_small",
    "verified",
]
