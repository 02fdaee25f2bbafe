"""A real run whose server is killed at moments of its own: the same completions and rewards, and nobody left at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2]
STEPS = 16
PROCESSES = {"api": "vllm.entrypoints", "engine": "multiprocessing.spawn"}
"""A word on the command line of each process of a vLLM server."""
STOPPED = (1, 4, 6, 8)
"""The kills among ten that are SIGSTOP: found out after seconds_per_call, or after seconds_to_start."""
REWARD = "def short(response: str) -> float:\n    return 1 / (1 + len(response))\n"


@pytest.fixture
def words(models: Callable[[bool], Path], tmp_path: Path) -> list[str]:
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "shared").mkdir()
    return [
        "+countdown=grpo-tiny", f"model.model_name_or_path={models(True)}", "rewards.equation=0",
        f"rewards.{tmp_path}/reward.py:short=1", "generation.engine=server", "generation.kv_cache_gib=0.125",
        "generation.seconds_to_start=600", f"generation.shared_folder={tmp_path / 'shared'}", "trainer.vllm_max_model_length=1024",
        f"trainer.max_steps={STEPS}", "trainer.lr_scheduler_type=constant", "trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=2",
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


def num_retries(folder: Path) -> int:
    """The number of times that a run lost its server and repeated a request."""
    log = folder.with_suffix(".log").read_text(errors="replace")
    return log.count("; trying again (") + log.count("; starting once more")


def supervisors_of(run: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The process between a trainer and each server that it started and that is still there."""
    return [
        child for child in psutil.Process(run.pid).children() if "tinyzero_trl.generation.supervisor" in words_of(child)
    ]


def servers_of(run: subprocess.Popen[bytes], *, but: Container[int] = ()) -> dict[str, psutil.Process]:
    """vLLM's two processes below the supervisors of a trainer, as far as they are there. but: supervisors to leave out."""
    below = [
        child for supervisor in supervisors_of(run) if supervisor.pid not in but for child in children_of(supervisor)
    ]
    return {name: child for child in below for name, word in PROCESSES.items() if word in " ".join(words_of(child))}


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


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
    """The first kill, and every third after, is of a server that is starting. Each is found out and counted by itself.

    In the end its trainer is killed, in the middle of the run: no server, token or weights are left.
    """
    if num_kills == 10:
        words += ["generation.seconds_per_call=5", "generation.seconds_to_start=60", "generation.seconds_per_batch=60"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    undisturbed, run = start(words, straight), start([*words, "trainer.max_steps=100000"], killed)
    dice, began = random.Random(num_kills), time.monotonic()
    steps = sorted(dice.sample(range(1, STEPS - 5), num_kills))
    before: set[int] = set()
    for kill in range(num_kills):
        is_starting = kill % 3 == 0
        if not is_starting:
            step = steps.pop(0)
            until(lambda step=step: num_steps(killed) >= step, run, killed, seconds=600)
        until(lambda: bool(servers_of(run, but=before)), run, killed, seconds=600)
        time.sleep(dice.uniform(0, 8 if is_starting else 0.8))
        name, victim = dice.choice(sorted(servers_of(run, but=before).items()))
        number = signal.SIGSTOP if num_kills == 10 and kill in STOPPED else signal.SIGKILL
        shown = f"{number.name} to {name} {'as it starts' if is_starting else f'after step {step}'}"
        before.update(supervisor.pid for supervisor in supervisors_of(run))
        victim.send_signal(number)
        told = time.monotonic()
        until(lambda kill=kill: num_retries(killed) > kill, run, killed, seconds=600)
        print(f"{shown}: found out after {time.monotonic() - told:.1f} s")
        assert num_retries(killed) == kill + 1
    until(lambda: num_steps(killed) > STEPS, run, killed, seconds=900)
    assert undisturbed.wait(timeout=900) == 0, straight.with_suffix(".log").read_text()[-3000:]
    assert_nothing_outlives(run, killed, tmp_path / "shared")
    print(f"{num_kills} kills, {num_retries(killed)} retries, {time.monotonic() - began:.0f} s")
    assert num_retries(killed) == num_kills
    ours, theirs = rollouts(killed)[: STEPS * 16], rollouts(straight)
    assert len(theirs) == STEPS * 16
    assert [row["completion"] for row in ours] == [row["completion"] for row in theirs]
    assert [row["reward"] for row in ours] == [row["reward"] for row in theirs]
    assert all(row["weights_step"] == row["step"] - 1 for row in ours)
    for line in (killed / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line).get("sampling/sampling_logp_difference/max", 0) < 1e-4
    assert not (straight / "server.token").exists()


@pytest.mark.nightly
def test_a_run_that_lost_its_server_for_good_ends_with_7_and_goes_on_as_if_nothing_had_been(
    words: list[str], tmp_path: Path
) -> None:
    straight, lost = tmp_path / "straight", tmp_path / "lost"
    undisturbed = start(words, straight)
    run = start([*words, "generation.max_failures=0"], lost)
    until(lambda: num_steps(lost) >= 3, run, lost, seconds=600)
    dead = servers_of(run)
    dead["engine"].kill()
    assert run.wait(timeout=900) == 7, lost.with_suffix(".log").read_text()[-3000:]
    (line,) = (line for line in lost.with_suffix(".log").read_text().splitlines() if line.startswith("error: "))
    assert "the vLLM server failed 1 times in a row" in line
    assert "is saved" in line
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in dead.values())
    resumed = start([*words, "generation.max_failures=0", f"trainer.resume_from_checkpoint={lost}"], lost)
    assert resumed.wait(timeout=900) == 0, lost.with_suffix(".log").read_text()[-3000:]
    assert undisturbed.wait(timeout=900) == 0, straight.with_suffix(".log").read_text()[-3000:]
    ours, theirs = rollouts(lost), rollouts(straight)
    assert [(row["completion"], row["reward"]) for row in ours] == [
        (row["completion"], row["reward"]) for row in theirs
    ]


@pytest.mark.nightly
def test_a_trainer_that_is_killed_while_its_server_starts_leaves_no_server_and_no_token(
    words: list[str], tmp_path: Path
) -> None:
    """By day: test_supervisor.py, whose server is one of `sleep`, and the kill in the middle of a run above."""
    folder = tmp_path / "run"
    run = start(words, folder)
    until(lambda: bool(servers_of(run)), run, folder, seconds=600)
    time.sleep(3)
    assert_nothing_outlives(run, folder, tmp_path / "shared")


def assert_nothing_outlives(run: subprocess.Popen[bytes], folder: Path, shared: Path) -> None:
    """Kill the trainer; what it started ends, and its token and weights are gone. shared: where its weights lie, and no other's."""
    there = psutil.Process(run.pid).children(recursive=True)
    assert there
    run.kill()
    run.wait()
    end = time.monotonic() + 200
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in there):
        assert time.monotonic() < end, [process.cmdline() for process in there if process.is_running()]
        time.sleep(0.1)
    assert not (folder / "server.token").exists()
    assert not list(shared.iterdir())
