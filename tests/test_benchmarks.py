"""The benchmarks run from end to end, and what they compare is the same training. Nothing here is timed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl.models import load_path

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
@pytest.mark.nightly
def test_our_step_moves_every_parameter_as_trl_does_whatever_it_leaves_out(tmp_path: Path) -> None:
    """By day: the trainers side by side in tests/trainer/test_batching.py, on one process and on two."""
    results = run("trainer_vs_trl.py", tmp_path, "--distribution", "r1", "--repeats", "1")["results"]
    assert {result["variant"] for result in results} == {"on policy", "IS", "mu=2"}
    for result in results:
        assert result["difference"] <= 1e-6
        assert result["update"] >= 1e-3
        assert result["ours"]["tokens"] < result["stock"]["tokens"]


@pytest.mark.slow
@pytest.mark.skipif(not Path(load_path("tiny")).is_dir(), reason="the tiny model is not in this package")
def test_the_demos_step_runs_on_both_trainers_and_counts_what_both_generate(tmp_path: Path) -> None:
    found = run("step_vs_trl.py", tmp_path, "--steps", "1")
    assert found["stock"]["generated"] > 0
    assert found["ours"]["generated"] > 0
    assert found["ours"]["tokens"] <= found["stock"]["tokens"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the other process is stopped by a signal")
def test_steps_beside_a_busy_process_are_counted_for_every_setting_and_the_process_ends(tmp_path: Path) -> None:
    results = run("busy.py", tmp_path, "--steps", "1")["results"]
    assert [(result["name"], result["threads"]) for result in results] == [
        *(("libgomp's own", 1), ("ours", 1), ("one thread", 1)),
    ]
    for state in ("quiet", "busy"):
        assert len({result[state]["tokens"] for result in results}) == 1, "every setting draws the same completions"
        assert all(result[state]["seconds"] > 0 for result in results)
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if command.endswith(b"-c\x00while True: pass\x00")]


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
@pytest.mark.parametrize("case", ["logits", "states-sgd"])
def test_what_is_estimated_is_what_a_run_takes_within_a_fifth(case: str, tmp_path: Path) -> None:
    """By day: test_estimate.py, against numbers counted by hand."""
    found = tmp_path / "found.json"
    script = str(FOLDER / "estimate_vs_measured.py")
    words = ["--case", case, "--json", str(found)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, script, *words], env=env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [abs(result["ratio"] - 1) < 0.2 for result in json.loads(found.read_text())] == [True]


@pytest.mark.parametrize(
    ("thought", "stops"),
    [
        ("48 + 17 = 65\n  - 55 = 10, - 10 = 0\n</think>\n<answer>48 + 17 - 55</answer>", 1.0),
        ("48 + 17 = 65\n  - 55 = 10\n  + 55 = 120\n</think>\n<answer>48 + 17 - 55</answer>", 0.0),
        ("48 + 17 = 65\n  - 55 = 10\n  + 55 =", 0.0),
        ("48 - 38 = 10\n48 + 17 = 65\n</think>\n<answer>48 + 17</answer>", math.nan),
        ("no thought", math.nan),
    ],
)
def test_a_thought_stops_at_its_first_hit_if_nothing_is_tried_behind_it(
    thought: str, stops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    found = __import__("search").stops_at_first_hit(thought, nums=[48, 17, 55], target=10)
    assert found == pytest.approx(stops, nan_ok=True)


@pytest.fixture
def gpu_proof(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return __import__("gpu_proof")


def test_the_gpu_proof_goes_on_after_a_part_that_fails_or_hangs_and_writes_the_table_after_each(
    gpu_proof: Any, tmp_path: Path
) -> None:
    def hangs(proof: Any) -> list[Any]:
        proof.deadline = time.monotonic() + 1
        # A child of its own: what a part leaves running would take the card from the parts after it.
        proof.run([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '977'])"])
        return []

    def fails(proof: Any) -> list[Any]:
        proof.run([sys.executable, "-c", "raise ValueError('no such card')"])
        return []

    parts = {
        "hangs": gpu_proof.Part(hangs, 1.0),
        "fails": gpu_proof.Part(fails, 1.0),
        "holds": gpu_proof.Part(lambda proof: [gpu_proof.Row("holds", "a | b", "1", "1", True)], 1.0),
    }
    written: list[int] = []
    proof = gpu_proof.Proof("cpu", True, tmp_path)
    rows = gpu_proof.prove(proof, parts, minutes=5, write=lambda rows: written.append(len(rows)))
    assert written == [2, 4, 6]
    assert [(row.part, row.value, row.holds) for row in rows if row.what != "took"] == [
        ("hangs", "took longer than its share of the minutes", False),
        ("fails", "exit code 1: ValueError: no such card", False),
        ("holds", "1", True),
    ]
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if command == b"sleep\x00977\x00"]
    page = gpu_proof.markdown(rows, {"card": "a card", "torch": "2"}, command="python x", seconds=1)
    assert "a card" in page.splitlines()[2]
    assert "| holds | a \\| b | 1 | 1 | yes |" in page


def test_the_gpu_proof_begins_no_part_without_minutes(gpu_proof: Any, tmp_path: Path) -> None:
    proof = gpu_proof.Proof("cpu", True, tmp_path)
    rows = gpu_proof.prove(proof, gpu_proof.PARTS, minutes=0.1, write=lambda rows: None)
    assert {row.what for row in rows} == {"not begun"}
    assert [row.part for row in rows] == list(gpu_proof.PARTS)


def test_the_gpu_proof_says_in_one_line_that_there_is_no_gpu(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(FOLDER / "gpu_proof.py"), "--out", str(tmp_path / "proof.md")],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "gpu_proof.py: there is no NVIDIA GPU here (no nvidia-smi); a dry run: --device cpu --small"
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_gpu_proof_finds_the_same_gradients_in_a_dry_run_on_a_cpu(tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    words = ["--device", "cpu", "--small", "--parts", "gradients", "--out", str(tmp_path / "proof.md")]
    ended = subprocess.run(
        [sys.executable, str(FOLDER / "gpu_proof.py"), *words, "--json", str(rows), "--minutes", "60"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert [row["holds"] for row in json.loads(rows.read_text(encoding="utf-8"))] == [True, None, True, None]
    assert "| gradients, 0.5B, bf16 | ours to stock TRL, relative |" in (tmp_path / "proof.md").read_text("utf-8")


def test_a_wheel_packed_anew_installs_without_what_is_left_out_and_records_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    gpu_wheels = __import__("gpu_wheels")
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    info = "small-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("small/__init__.py", "VALUE = 7\n" * 1000)
        file.writestr("small/tests/test_it.py", "assert False\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    gpu_wheels.pack_anew(wheel, ("*/tests/*",))
    target = tmp_path / "target"
    words = ["--no-index", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "install", *words], check=True, timeout=300)
    assert (target / "small" / "__init__.py").read_text() == "VALUE = 7\n" * 1000
    assert not (target / "small" / "tests").exists()
    assert "small/__init__.py,sha256=" in (target / info / "RECORD").read_text()


def test_the_wheels_for_a_gpu_host_are_all_that_this_package_needs_beside_torch_and_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from packaging.requirements import Requirement

    monkeypatch.syspath_prepend(str(FOLDER))
    gpu_wheels = __import__("gpu_wheels")
    metadata = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {gpu_wheels.normal(Requirement(line).name) for line in metadata["project"]["dependencies"]}
    # What an image for training has: transformers and accelerate bring the last three.
    there = {"torch", "transformers", "accelerate", "numpy", "safetensors", "jinja2"}
    assert needed - there <= set(map(gpu_wheels.normal, gpu_wheels.NAMES))
    pinned = gpu_wheels.versions(FOLDER.parents[1] / "constraints.txt")
    assert needed - there <= pinned.keys()
