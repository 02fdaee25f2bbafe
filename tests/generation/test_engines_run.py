"""The commands a person types: `tinyzero serve` and a run that uses it; the same answers in evaluation from every engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from tinyzero_trl.config import free_port

REPO = Path(__file__).resolve().parents[2]
SMALL = (
    "trainer.max_steps=2", "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=2",
    "trainer.num_generations=4", "trainer.max_completion_length=16", "trainer.save_steps=100", "data.num_train_rows=200",
    "trainer.eval_strategy=no", "trainer.eval_on_start=false", "data.num_eval_rows=0", "give_up_after=0",
)  # fmt: skip
GAP = "sampling/sampling_logp_difference/max"


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
COMPILED = CACHE / "torch_extensions" / f"py{sys.version_info.major}{sys.version_info.minor}_cpu"
"""Where DeepSpeed keeps what it compiles on a CPU, most of a minute long."""
INSPECTED = CACHE / "vllm"
"""Where vLLM keeps what it found out about a model's class, in a process that imports all of vLLM for it."""


def program(folder: Path, *words: Any, **variables: str) -> subprocess.Popen[str]:
    """A command whose tokens are in `folder`."""
    own = {"XDG_CACHE_HOME": str(folder), "TORCH_EXTENSIONS_DIR": str(COMPILED), "VLLM_CACHE_ROOT": str(INSPECTED)}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **own, **variables}
    command = [sys.executable, "-m", "tinyzero_trl.cli", *map(str, words)]
    return subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def served(models: Callable[[bool], Path], tmp_path: Path) -> Iterator[tuple[str, list[str], subprocess.Popen[str]]]:
    (tmp_path / "reward.py").write_text("def short(response: str) -> float:\n    return 1 / (1 + len(response))\n")
    recipe = [
        "+countdown=grpo-tiny", f"model.model_name_or_path={models(False)}", "generation.kv_cache_gib=0.125", *SMALL,
        "rewards.equation=0", f"rewards.{tmp_path}/reward.py:short=1", "trainer.learning_rate=3e-3",
    ]  # fmt: skip
    port = free_port()
    serving = program(tmp_path, "serve", *recipe, "--port", port, "--log", tmp_path / "server.log")
    assert serving.stdout
    line = serving.stdout.readline()
    assert line.startswith("token: "), line + (serving.stderr.read() if serving.stderr else "")
    yield f"http://127.0.0.1:{port}", recipe, serving
    if serving.poll() is None:
        serving.kill()
    serving.communicate()


def until_one_ends(runs: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    end = time.monotonic() + 600
    while not (ended := [run for run in runs if run.poll() is not None]):
        assert time.monotonic() < end
        time.sleep(0.1)
    return ended[0]


def test_one_run_uses_the_server_of_another_terminal_and_a_second_is_refused(
    served: tuple[str, list[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    url, recipe, serving = served
    words = ["train", *recipe, "generation.engine=server", f"generation.server={url}", "trainer.max_steps=100000"]
    runs = [program(tmp_path, *words, f"output_dir={tmp_path / name}") for name in ("one", "other")]
    try:
        refused = until_one_ends(runs)
        _, errors = refused.communicate()
        assert refused.returncode == 2
        assert "is used by another run; give each run a server of its own" in errors
        (goes_on,) = (run for run in runs if run is not refused)
        end = time.monotonic() + 600
        while not list(tmp_path.glob("*/rollouts/train-00000003.parquet")):
            assert goes_on.poll() is None, goes_on.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        token = next((tmp_path / "tinyzero-trl").glob("*.token")).read_text().strip()
        for process in (psutil.Process(goes_on.pid), *psutil.Process(goes_on.pid).children(recursive=True)):
            assert token not in " ".join([*process.cmdline(), *process.environ().values()])
        goes_on.send_signal(signal.SIGTERM)
        printed, errors = goes_on.communicate(timeout=600)
        assert goes_on.returncode == 143, errors
        assert token not in printed + errors
        kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".token"]
        assert any(path.suffix == ".parquet" for path in kept)
        (metrics,) = tmp_path.glob("*/metrics.jsonl")
        entries = [json.loads(line) for line in metrics.read_text().splitlines()]
        gaps = [entry[GAP] for entry in entries if GAP in entry]
        assert len(gaps) >= 3
        assert max(gaps) < 1e-4
        assert not [path for path in kept if token.encode() in path.read_bytes()]
    finally:
        for run in runs:
            run.kill()
    there = psutil.Process(serving.pid).children(recursive=True)
    assert serving.poll() is None, "a server of a person's own outlives the runs that use it"
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(timeout=600) == 143
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in there)
    assert not list((tmp_path / "tinyzero-trl").glob("*.token"))


@pytest.mark.nightly
@pytest.mark.parametrize("ahead", [0, 1])
def test_two_processes_that_share_the_weights_feed_one_server_and_have_each_its_rows(
    ahead: int, models: Callable[[bool], Path], tmp_path: Path
) -> None:
    """By day: a run of one process above, test_weights.py, and ZeRO-3 in tests/trainer (test_batching.py, test_launch.py)."""
    words = [
        "train", "+countdown=grpo-tiny", f"model.model_name_or_path={models(True)}", "generation.kv_cache_gib=0.125", *SMALL,
        "generation.engine=server", f"output_dir={tmp_path / 'run'}", "trainer.learning_rate=3e-3", "trainer.max_steps=3",
        "--processes", "2", "--accelerate_config", "zero3", f"generation.ahead={ahead}",
    ]  # fmt: skip
    training = program(tmp_path, *words, DS_ACCELERATOR="cpu")
    printed, errors = training.communicate(timeout=900)
    assert training.returncode == 0, printed[-2000:] + errors[-4000:]
    rows = [row for shard in sorted((tmp_path / "run/rollouts").glob("*")) for row in pq.read_table(shard).to_pylist()]
    assert len(rows) == 3 * 32
    assert all(row["weights_step"] == max(row["step"] - 1 - ahead, 0) for row in rows)
    assert len({row["seed"] for row in rows}) == len(rows)
    gaps = [json.loads(line).get(GAP, 0) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(gaps[: 1 if ahead else None]) < 1e-4


def test_a_server_is_not_opened_to_every_network(tmp_path: Path) -> None:
    serving = program(tmp_path, "serve", "+countdown=grpo-tiny", "--host", "0.0.0.0")
    _, errors = serving.communicate(timeout=600)
    assert serving.returncode == 2
    assert "--i-know-this-network-is-private" in errors


def test_evaluation_gives_the_same_greedy_answers_by_every_engine(tmp_path: Path) -> None:
    from tinyzero_trl.config import ENGINES
    from tinyzero_trl.evaluation import scores

    words = [
        "evaluate",
        "--model_path",
        "tiny",
        "--task",
        "countdown",
        "--source",
        "generated",
        "--n",
        "24",
        "--temperature",
        "0",
    ]
    words += ["--max_new_tokens", "48", "--output", str(tmp_path)]
    runs = {engine: program(tmp_path, *words, "--name", engine, "--engine", engine) for engine in ENGINES}
    samples = []
    for engine, run in runs.items():
        printed, errors = run.communicate(timeout=600)
        assert run.returncode == 0, printed[-2000:] + errors[-3000:]
        folder = tmp_path / "evaluation" / engine
        assert scores.read_summary(folder)["engine"] == engine
        samples.append([(sample.completion, sample.is_truncated) for sample in scores.read_samples(folder)])
    assert samples[0] == samples[1] == samples[2]
