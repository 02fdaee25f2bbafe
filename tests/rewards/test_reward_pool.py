"""Rewards in worker processes: the same numbers, and whatever a reward does costs its own sample only."""

from __future__ import annotations

import itertools
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
import pytest

from tinyzero_trl.config import RewardWorkerSettings
from tinyzero_trl.rewards import BatchReward, for_trl
from tinyzero_trl.rewards.pool import RewardPool
from tinyzero_trl.rewards.scoring import RewardCall
from tinyzero_trl.task import resolve
from tinyzero_trl.tasks import countdown
from tinyzero_trl.tasks.reward_worker import score_here

REWARD = """
import ctypes, os, time

def odd(response, *, n):
    if n == 0:
        return 1.0
    if response == "hangs":
        while True:
            pass
    if response == "hangs in C":
        9 ** 9 ** 9
    if response == "sleeps":
        time.sleep(0.1)
    if response == "exits":
        os._exit(3)
    if response == "stops":
        raise SystemExit("enough")
    if response == "crashes":
        ctypes.string_at(0)
    if response == "is killed":
        os.kill(os.getpid(), 9)
    if response == "raises":
        raise KeyError(response)
    if response == "recurses":
        return odd(response, n=n)
    if response == "eats":
        return float(len(bytearray(1 << 36)))
    if response == "lies":
        return object()
    return n / 100
"""


@pytest.fixture
def pooled(tmp_path: Path) -> Iterator[Callable[..., tuple[BatchReward, RewardPool]]]:
    """`odd` of a file as a run would have it: `pooled(seconds_per_call=1)`."""
    (tmp_path / "odd.py").write_text(REWARD)
    pools: list[RewardPool] = []

    def make(**settings: Any) -> tuple[BatchReward, RewardPool]:
        name = f"{tmp_path}/odd.py:odd"
        settings = {"num_workers": 2, "seconds_per_call": 1.0, **settings}
        pools.append(RewardPool("countdown", RewardWorkerSettings(rewards=[name], **settings), score=score_here))
        reward = resolve(name, among={}, kind="reward")
        return for_trl(reward, name=name, workers=pools[-1]), pools[-1]

    yield make
    for pool in pools:
        pool.close()


def workers_of(pool: RewardPool) -> list[psutil.Process]:
    living = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in living if "spawn_main" in " ".join(child.cmdline())]


def call(reward: BatchReward, texts: list[str], **metrics: float) -> tuple[list[float | None], dict[str, float]]:
    logged: dict[str, float] = {}
    numbers = list(range(1, 1 + len(texts)))
    return reward([""] * len(texts), texts, log_metric=logged.__setitem__, n=numbers), logged


@pytest.mark.parametrize(
    ("bad", "metric", "line"),
    [
        ("hangs", "lost", "took more than reward_workers.seconds_per_call 1"),
        ("hangs in C", "lost", "took more than reward_workers.seconds_per_call 1"),
        ("exits", "lost", "its worker died (exit code 3)"),
        ("crashes", "lost", "its worker died (exit code -11)"),
        ("is killed", "lost", "its worker died (exit code -9)"),
        ("stops", "rejected", "raised SystemExit('enough')"),
        ("raises", "rejected", "raised KeyError('raises')"),
        ("recurses", "rejected", "raised RecursionError"),
        ("eats", "rejected", "raised MemoryError"),
        ("lies", "rejected", "raised TypeError"),
    ],
)
def test_whatever_a_reward_does_costs_its_sample_only(
    pooled: Any, caplog: pytest.LogCaptureFixture, bad: str, metric: str, line: str
) -> None:
    reward, _ = pooled()
    texts = ["a", bad, "b", bad, "c"]
    for _ in range(2):
        numbers, logged = call(reward, texts)
        assert numbers == [0.01, None, 0.03, None, 0.05]
        other = "rejected" if metric == "lost" else "lost"
        assert logged[f"rewards/{reward.__name__}/{metric}"] == 0.4
        assert logged[f"rewards/{reward.__name__}/{other}"] == 0
    assert [line in record.getMessage() for record in caplog.records] == [True]


def test_a_batch_has_a_limit_and_the_next_one_is_not_held_up(pooled: Any, caplog: pytest.LogCaptureFixture) -> None:
    reward, pool = pooled(seconds_per_batch=900.0)
    call(reward, ["a"])  # the workers start
    pool.settings.seconds_per_batch = 3.0
    numbers, logged = call(reward, ["a", *["hangs"] * 30])
    assert "a batch took more than reward_workers.seconds_per_batch 3" in caplog.text
    assert numbers == [0.01, *[None] * 30]
    assert logged[f"rewards/{reward.__name__}/lost"] == 30 / 31
    pool.settings.seconds_per_batch = 900.0
    assert call(reward, ["a", "b"])[0] == [0.01, 0.02]


def test_a_worker_killed_from_outside_costs_nothing_busy_or_idle(pooled: Any) -> None:
    reward, pool = pooled()
    for _ in range(3):
        assert call(reward, ["a"] * 4)[0] == [0.01, 0.02, 0.03, 0.04]
        for worker in workers_of(pool):
            worker.kill()
    for _ in range(3):
        calls = [RewardCall("sleeps", {"n": n}) for n in range(1, 9)]
        pool.submit(reward.__name__, calls)
        time.sleep(0.15)
        for worker in workers_of(pool)[:1]:
            worker.kill()
        assert [score.number for score in pool.score(reward.__name__, calls)] == [n / 100 for n in range(1, 9)]


def test_what_was_submitted_is_computed_while_the_trainer_does_other_things(pooled: Any) -> None:
    reward, pool = pooled()
    call(reward, ["a"])
    texts = ["sleeps"] * 10
    reward.submit(texts, {"n": list(range(1, 11))})
    end = time.monotonic() + 60
    while pool._num_done < 11:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert call(reward, texts)[0] == [n / 100 for n in range(1, 11)]
    assert pool._num_done == 11, "nothing is computed twice"
    reward.submit(["something else"], {"n": [7]})
    assert call(reward, ["a"])[0] == [0.01]
    reward.submit(["a"], {})  # no column yet: nothing begins


def test_a_closed_pool_starts_again_when_it_is_called(pooled: Any) -> None:
    reward, pool = pooled()
    assert call(reward, ["a"])[0] == [0.01]
    pool.close()
    assert workers_of(pool) == []
    assert call(reward, ["a"])[0] == [0.01]


@pytest.fixture(scope="module")
def rollouts() -> list[dict[str, Any]]:
    """Right, wrong, cut off and garbled responses to 200 problems of Countdown."""
    draw = random.Random(0)
    made = []
    problems = countdown.generate(draw, num_numbers=(3, 4), numbers=(1, 99), targets=(10, 99))
    for row in itertools.islice(problems, 200):
        answer = countdown.solve(row["nums"], row["target"])
        right = f"{row['nums']}</think>\n<answer>{answer}</answer>"
        at = draw.randrange(len(right))
        for text in (right, right.replace("+", "-"), right[:at], right[:at] + "×<think>" + right[at:]):
            made.append({**row, "prefill": "<think>", "completion": text})
    return made


@pytest.mark.parametrize("name", sorted(countdown.TASK.rewards))
def test_countdown_responses_earn_the_same_in_workers_and_here(name: str, rollouts: list[dict[str, Any]]) -> None:
    columns = {key: [row[key] for row in rollouts] for key in ("nums", "target", "prefill")}
    completions = [row["completion"] for row in rollouts]
    pool = RewardPool("countdown", RewardWorkerSettings(rewards=[name]), score=score_here)
    there = for_trl(countdown.TASK.rewards[name], name=name, workers=pool)(completions, completions, **columns)
    pool.close()
    here = for_trl(countdown.TASK.rewards[name], name=name)(completions, completions, **columns)
    assert there == here
    assert len(set(here)) > 1


def test_no_worker_outlives_a_trainer_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(REWARD)
    program = tmp_path / "program.py"
    program.write_text(
        "import time\n"
        "from tinyzero_trl.rewards.pool import RewardPool\n"
        "from tinyzero_trl.rewards.scoring import RewardCall\n"
        "from tinyzero_trl.tasks.reward_worker import score_here\n"
        "from tinyzero_trl.config import RewardWorkerSettings\n"
        "if __name__ == '__main__':\n"
        f"    pool = RewardPool('countdown', RewardWorkerSettings(rewards=['{tmp_path}/odd.py:odd'], seconds_per_call=99), score=score_here)\n"
        f"    pool.score('{tmp_path}/odd.py:odd', [RewardCall('a', {{'n': 1}})])\n"
        f"    pool.submit('{tmp_path}/odd.py:odd', [RewardCall('hangs', {{'n': 1}})])\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(900)\n"
    )
    trainer = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "ready\n"
    children = psutil.Process(trainer.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


def test_a_worker_starts_without_torch() -> None:
    seen = subprocess.run(
        [sys.executable, "-c", "import sys, tinyzero_trl.tasks.reward_worker, tinyzero_trl.grpo; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "trl", "transformers", "datasets"} & set(seen)
