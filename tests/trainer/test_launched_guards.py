"""Two processes: a loss that is not finite on one of them, and rewards in the worker processes of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_a_loss_that_is_not_finite_on_one_process_skips_the_step_on_both(
    config: str, launched: Callable[[str], Path]
) -> None:
    folder = launched(config)
    reward, run = f"{folder}/rewards.py:short_in_worker", folder / "spoiled"
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for entry in entries if "skipped_steps" in entry]
    assert [entry["skipped_steps"] for entry in entries] == [0.0, 1.0, 0.0]
    assert [entry["loss"] is None for entry in entries] == [False, True, False]
    assert [entry[f"rewards/{reward}/rejected"] for entry in entries] == [0.0, 0.0, 0.0]
    assert all(entry["reward"] > 0 for entry in entries)
    weights = [load_file(run / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not all((weights[1][name] == weights[2][name]).all() for name in weights[0])
    records = [json.loads((run / "faults" / f"non-finite-step-2-rank-{r}.json").read_text()) for r in (0, 1)]
    assert ["inf" in record["losses"] for record in records] == [False, True]
