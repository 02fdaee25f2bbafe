"""A real run whose server is killed at moments of its own: the same completions and rewards, and nobody left at the end."""

from __future__ import annotations

import json
import os
import random
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

REPO = Path(__file__).resolve().parents[2]
STEPS = 12
REWARD = "def short(response: str) -> float:\n    return 1 / (1 + len(response))\n"


@pytest.fixture
def words(models: Callable[[bool], Path], tmp_path: Path) -> list[str]:
    (tmp_path / "reward.py").write_text(REWARD)
    return [
        "+countdown=grpo-tiny", f"model.model_name_or_path={models(True)}", "rewards.equation=0",
        f"rewards.{tmp_path}/reward.py:short=1", "generation.engine=server", "generation.kv_cache_gib=0.125",
        "generation.seconds_per_call=5", "generation.seconds_to_start=90", "generation.seconds_per_batch=60", "trainer.vllm_max_model_length=1024",
        f"trainer.max_steps={STEPS}", "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=2",
        "trainer.num_generations=4", "trainer.max_completion_length=24", "trainer.save_steps=100", "data.num_train_rows=200",
        "trainer.eval_strategy=no", "trainer.eval_on_start=false", "data.num_eval_rows=0",
    ]  # fmt: skip


RUNS: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _no_run_is_left() -> Iterator[None]:
    yield
    while RUNS:
        RUNS.pop().kill()


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with folder.with_suffix(".log").open("wb") as log:
        command = [sys.executable, str(REPO / "src/tinyzero_trl/grpo.py"), *words, f"output_dir={folder}"]
        RUNS.append(subprocess.Popen(command, cwd=REPO, env=env, stdout=log, stderr=subprocess.STDOUT))
    return RUNS[-1]


def num_steps(folder: Path) -> int:
    return len(list((folder / "rollouts").glob("train-*.parquet")))


def servers_of(process: psutil.Process) -> list[psutil.Process]:
    """vLLM's processes below a trainer, the first of them the one that answers."""
    found = [child for child in process.children(recursive=True) if is_server(child)]
    return [child for child in found if "keeper" not in " ".join(child.cmdline())]


def is_server(process: psutil.Process) -> bool:
    try:
        return "vllm" in " ".join(process.cmdline()).lower() or "vllm" in process.name().lower()
    except psutil.Error:
        return False


def rollouts(folder: Path) -> list[dict[str, Any]]:
    shards = sorted((folder / "rollouts").glob("train-*.parquet"))
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def until(holds: Callable[[], bool], run: subprocess.Popen[bytes], folder: Path, *, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert run.poll() is None, folder.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < end, folder.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.02)


@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_run_whose_server_is_killed_ends_as_one_whose_was_not(
    num_kills: int, words: list[str], tmp_path: Path
) -> None:
    began = time.monotonic()
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    undisturbed = start(words, straight)
    dice, moments = random.Random(num_kills), []
    # A process that is stopped is found out in half a minute, one that is gone at once.
    numbers = [signal.SIGKILL] if num_kills < 10 else [signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]
    run = start(words, killed)
    after = sorted(dice.sample(range(STEPS), num_kills))
    for step in after:
        until(lambda step=step: num_steps(killed) >= step, run, killed, seconds=180)
        if not step:
            until(lambda: bool(servers_of(psutil.Process(run.pid))), run, killed, seconds=60)
        time.sleep(dice.uniform(0, 0.8))
        victims = servers_of(psutil.Process(run.pid))
        if victims:
            victim, number = dice.choice(victims), dice.choice(numbers)
            moments.append((step, victim.name(), signal.Signals(number).name))
            victim.send_signal(number)
    assert run.wait(timeout=400) == 0, killed.with_suffix(".log").read_text()[-3000:]
    assert undisturbed.wait(timeout=300) == 0, straight.with_suffix(".log").read_text()[-3000:]
    log = killed.with_suffix(".log").read_text()
    print(
        f"{moments} in {time.monotonic() - began:.0f} s; {log.count('trying again') + log.count('starting once more')} retries"
    )
    ours, theirs = rollouts(killed), rollouts(straight)
    assert len(theirs) == STEPS * 16
    assert [row["completion"] for row in ours] == [row["completion"] for row in theirs]
    assert [row["reward"] for row in ours] == [row["reward"] for row in theirs]
    assert all(row["weights_step"] == row["step"] - 1 for row in ours)
    for line in (killed / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).get("sampling/sampling_logp_difference/max", 0) < 1e-4
    assert not (killed / "server.token").exists()


@pytest.mark.parametrize("at", ["while the server starts", "in the middle of the run"])
def test_a_trainer_that_is_killed_leaves_no_server_no_token_and_no_weights(
    at: str, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    folder = tmp_path / "run"
    run = start([*words, f"generation.shared_folder={tmp_path / 'shared'}"], folder)
    if at == "while the server starts":
        until(lambda: bool(servers_of(psutil.Process(run.pid))), run, folder, seconds=120)
        time.sleep(3)
    else:
        until(lambda: num_steps(folder) >= 2, run, folder, seconds=180)
    there = psutil.Process(run.pid).children(recursive=True)
    assert there
    run.kill()
    run.wait()
    end = time.monotonic() + 20
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in there):
        assert time.monotonic() < end, [process.cmdline() for process in there if process.is_running()]
        time.sleep(0.1)
    assert not (folder / "server.token").exists()
    assert not list((tmp_path / "shared").iterdir())
