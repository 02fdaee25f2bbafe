"""Countdown for lighteval (0.13.0): the problems of `tinyzero evaluate --task countdown`, and its verdicts.

See docs/evaluation.md#other-harnesses. lighteval hands a task no arguments: those of `problems` and `max_new_tokens`
stand as JSON in the environment variable TINYZERO_COUNTDOWN.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import numpy as np
from datasets import Dataset
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod

from tinyzero_trl.task import Row, prompts
from tinyzero_trl.tasks.countdown import TASK


def problems(*, source: str = "generated", num_rows: int = 1024, seed: int = 0, wording: str = "base") -> Dataset:
    """The problems of `--source SOURCE --n NUM_ROWS --seed SEED --format WORDING`.

    Raises: ValueError where the wording is a chat: of a task lighteval takes text only, and makes a chat of it itself.
    """
    rows = prompts(TASK.load(split="test", source=source, num_rows=num_rows, seed=seed), TASK.formats[wording])
    if not isinstance(rows[0]["prompt"], str):
        raise ValueError(f"wording {wording!r} is a chat; lighteval takes one that is text, such as 'base'")
    return rows


def doc(row: Row, task_name: str) -> Doc:
    """`row` as lighteval asks it; the columns that the verifier reads go along."""
    columns = {name: row[name] for name in ("prefill", *TASK.columns)}
    return Doc(task_name=task_name, query=row["prompt"], choices=[str(row["target"])], gold_index=0, specific=columns)


class Solved(SampleLevelComputation):
    """1.0 exactly where `tinyzero evaluate` says correct; lighteval does not tell what was cut off, which is wrong either way."""

    def compute(self, doc: Doc, model_response: ModelResponse, **_: Any) -> float:
        columns = {name: doc.specific[name] for name in TASK.columns}
        # Not final_text: from that lighteval has taken the thoughts out, and the format is judged with them.
        response = doc.specific["prefill"] + model_response.text[0]
        return float(TASK.verify(response, **columns).outcome == "correct")


arguments = json.loads(os.environ.get("TINYZERO_COUNTDOWN", "{}"))
# Here and not in generation_parameters: there lighteval shortens the prompts by it, and not the responses.
max_new_tokens = arguments.pop("max_new_tokens", 1024)
# lighteval reads data sets from the hub or a folder. A new folder each time (removed when Python ends) also keeps it from
# answering out of its cache, which knows a model by its path and not by its weights.
folder = tempfile.TemporaryDirectory(prefix="tinyzero-countdown-")
problems(**arguments).to_parquet(f"{folder.name}/test.parquet")

TASKS_TABLE = [
    LightevalTaskConfig(
        name="tinyzero_countdown",
        prompt_function=doc,
        hf_repo=folder.name,
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        generation_size=max_new_tokens,
        stop_sequence=[],
        metrics=[
            SampleLevelMetric(
                metric_name="solved",
                higher_is_better=True,
                category=SamplingMethod.GENERATIVE,
                sample_level_fn=Solved(),
                corpus_level_fn=np.mean,
            )
        ],
    )
]
