"""The benchmarks run from end to end, and what they compare is the same training. Nothing here is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl.config import model_path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def run(script: str, tmp_path: Path, *words: str) -> dict[str, Any]:
    found = tmp_path / "found.json"
    ended = subprocess.run(
        [sys.executable, str(FOLDER / script), "--quick", "--threads", "1", "--json", str(found), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(json.loads(found.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_our_step_moves_every_parameter_as_trl_does_whatever_it_leaves_out(tmp_path: Path) -> None:
    results = run("trainer_vs_trl.py", tmp_path, "--distribution", "r1", "--repeats", "1")["results"]
    assert {result["variant"] for result in results} == {"on policy", "IS", "mu=2"}
    for result in results:
        assert result["difference"] <= 1e-6
        assert result["update"] >= 1e-3
        assert result["ours"]["tokens"] < result["stock"]["tokens"]


@pytest.mark.slow
@pytest.mark.skipif(not Path(model_path("tiny")).is_dir(), reason="the tiny model is not in this package")
def test_the_demos_step_runs_on_both_trainers_and_counts_what_both_generate(tmp_path: Path) -> None:
    found = run("step_vs_trl.py", tmp_path, "--steps", "1")
    assert found["stock"]["generated"] > 0
    assert found["ours"]["generated"] > 0
    assert found["ours"]["tokens"] <= found["stock"]["tokens"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_what_is_estimated_is_what_a_run_takes_within_a_fifth(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    script = str(FOLDER / "estimate_vs_measured.py")
    words = ["--case", "states-sgd", "--case", "logits", "--json", str(found)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, script, *words], env=env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [abs(result["ratio"] - 1) < 0.2 for result in json.loads(found.read_text())] == [True, True]
