"""Functions that tinyzero_countdown.yaml calls: the problems of `tinyzero evaluate --task countdown`, and its verdicts."""

from __future__ import annotations

from typing import Any

from tinyzero_trl.task import Row, prompts
from tinyzero_trl.tasks.countdown import TASK


def problems(
    *, source: str = "generated", num_rows: int = 1024, seed: int = 0, wording: str = "base", **_: Any
) -> dict[str, Any]:
    """{"test": the same problems in the same order as `--source SOURCE --n NUM_ROWS --seed SEED --format WORDING`}.

    Arguments are lm-eval's --metadata, as JSON; it adds its own, which are passed over.
    """
    return {
        "test": prompts(TASK.load(split="test", source=source, num_rows=num_rows, seed=seed), TASK.formats[wording])
    }


def verdict(doc: Row, results: list[str]) -> dict[str, float]:
    """{"solved": 1.0 exactly where `tinyzero evaluate` says correct}; lm-eval does not tell what was cut off, which is wrong either way."""
    columns = {name: doc[name] for name in TASK.columns}
    return {"solved": float(TASK.verify(doc["prefill"] + results[0], **columns).outcome == "correct")}
