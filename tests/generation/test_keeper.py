"""No process of a server outlives whoever started it, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

SERVER = "trap '' TERM; sleep 999 & sleep 999 & wait; sleep 999"
"""A server that has children and does not listen to SIGTERM."""
TRAINER = """
import subprocess, sys, time
keeper = subprocess.Popen([sys.executable, "-m", "tinyzero_trl.generation.keeper", str(__import__("os").getpid()),
                           sys.argv[2], "--", "sh", "-c", sys.argv[1]], start_new_session=True)
print(keeper.pid, flush=True)
time.sleep(999)
"""


@pytest.fixture
def started(tmp_path: Path) -> tuple[subprocess.Popen[str], psutil.Process, Path]:
    """A trainer, its keeper, and a file that is to go with the trainer."""
    (tmp_path / "token").touch()
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, SERVER, str(tmp_path / "token")], stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout
    keeper = psutil.Process(int(trainer.stdout.readline()))
    until(lambda: len(keeper.children(recursive=True)) >= 3)
    return trainer, keeper, tmp_path / "token"


def until(holds: Callable[[], bool], *, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def family(keeper: psutil.Process) -> list[psutil.Process]:
    return [keeper, *keeper.children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_its_trainer(
    started: tuple[subprocess.Popen[str], psutil.Process, Path], number: int
) -> None:
    trainer, keeper, token = started
    there = family(keeper)
    trainer.send_signal(number)
    trainer.wait()
    until(lambda: are_gone(there))
    assert not token.exists()


def test_the_server_ends_with_its_keeper_and_its_files_stay_for_the_next(
    started: tuple[subprocess.Popen[str], psutil.Process, Path],
) -> None:
    trainer, keeper, token = started
    there = family(keeper)
    keeper.send_signal(signal.SIGTERM)
    until(lambda: are_gone(there))
    assert token.exists()
    trainer.kill()
    trainer.wait()


def test_a_keeper_that_is_killed_takes_the_server_along(
    started: tuple[subprocess.Popen[str], psutil.Process, Path],
) -> None:
    trainer, keeper, _ = started
    server = keeper.children()[0]
    left = server.children()
    keeper.kill()
    until(lambda: are_gone([server]))
    for process in left:  # vLLM's own processes ask the kernel for the same (plugin.py); those of sh do not
        process.kill()
    trainer.kill()
    trainer.wait()


def test_what_a_server_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    command = "setsid sleep 999 & echo $!; sleep 0.3; exit 9"
    keeper = subprocess.run(
        [sys.executable, "-m", "tinyzero_trl.generation.keeper", str(os.getpid()), "--", "sh", "-c", command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
    )
    assert keeper.returncode == 9
    assert not psutil.pid_exists(int(keeper.stdout.split()[0]))
