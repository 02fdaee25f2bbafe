"""Evaluating any model on held-out problems: completions, verdicts, metrics with intervals, and comparisons of two models.

    `command_line` -> `plan` (what is asked, checked) -> `evaluating` -> `scores` (metrics, the evaluation folder) -> `tables`
                                                          |      |
                       `completions` (the model, loaded) <-      -> `unfinished` (shards of completions, kept after a kill)

`benchmarks` names the data sets of mathematics. `contamination` measures how many problems a model knows by heart. `audit` grades a
finished evaluation again, with `second_graders` that share no code with our verifiers.
"""

from tinyzero_trl.evaluation.benchmarks import BENCHMARKS, chosen, load
from tinyzero_trl.evaluation.command_line import main
from tinyzero_trl.evaluation.evaluating import evaluate
from tinyzero_trl.evaluation.plan import Settings
from tinyzero_trl.evaluation.tables import is_share, shown_p, too_small

__all__ = [
    "BENCHMARKS",
    "Settings",
    "chosen",
    "evaluate",
    "is_share",
    "load",
    "main",
    "shown_p",
    "too_small",
]
