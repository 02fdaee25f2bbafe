"""vLLM inside the trainer's process on a CPU: the weights it samples from are those that are trained, at every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest


@pytest.mark.parametrize(("tied", "synced"), [(True, "whole"), (False, "merged"), (True, "adapter")])
def test_log_probabilities_are_the_trainers_at_every_step(
    tied: bool, synced: str, models: Callable[[bool], Path], tmp_path: Path
) -> None:
    program = Path(__file__).with_name("colocated_program.py")
    command = [sys.executable, *map(str, (program, models(tied), tmp_path, synced))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    said = json.loads([line for line in done.stdout.splitlines() if line.startswith('{"gaps"')][-1])
    print(said)
    assert len(said["gaps"]) == 4
    assert max(said["gaps"]) < 1e-4
    assert min(said["grad_norm"]) > 0
    assert said["effect"] > 1e-2 or synced == "whole"
    rows = [
        row for shard in sorted((tmp_path / "rollouts").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()
    ]
    assert all(row["weights_step"] == row["step"] - 1 for row in rows)
    assert len({row["seed"] for row in rows}) == len(rows)
    if synced == "whole":
        letters = set("abcdefghijklm")  # its stop strings
        stopped = [row for row in rows if letters & set(row["completion"])]
        assert stopped
        assert all(row["completion"][-1] in letters and not row["is_truncated"] for row in stopped)
        assert all(letters.isdisjoint(row["completion"][:-1]) for row in stopped)
