"""Claims that hold on a GPU alone. The measurements and their bounds are those of docs/benchmarks/gpu_proof.py, part by part."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "gpu_proof.py"
Rows = list[dict[str, object]]

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.alone]


def proved(part: str, folder: Path) -> Rows:
    """The rows of one part of the proof."""
    rows = folder / "rows.json"
    words = ["--parts", part, "--out", str(folder / "proof.md"), "--json", str(rows), "--folder", str(folder)]
    ended = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=900)
    assert rows.is_file(), ended.stderr
    return list(json.loads(rows.read_text(encoding="utf-8")))


def assert_holds(rows: Rows, *, least: int = 1) -> None:
    """Every row that wants something has it, and so many do."""
    assert not [row for row in rows if row["holds"] is False]
    assert len([row for row in rows if row["holds"]]) >= least


def test_the_gradients_in_bf16_are_stock_trls_within_the_bound(tmp_path: Path) -> None:
    assert_holds(proved("gradients", tmp_path), least=2)


def test_a_token_takes_no_longer_than_with_stock_trl(tmp_path: Path) -> None:
    assert_holds(proved("speed", tmp_path))


def test_the_demo_learns_on_the_gpu(tmp_path: Path) -> None:
    assert_holds(proved("demo", tmp_path))


def test_the_memory_is_what_estimate_says_within_a_fifth(tmp_path: Path) -> None:
    assert_holds(proved("memory", tmp_path), least=4)


def test_a_resumed_run_is_the_straight_one_as_far_as_that_repeats_itself(tmp_path: Path) -> None:
    assert_holds(proved("resume", tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_colocate_and_server_draw_from_the_policy_that_is_trained(tmp_path: Path) -> None:
    assert_holds(proved("engines", tmp_path), least=3)
