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
supervisor = subprocess.Popen([sys.executable, "-m", "tinyzero_trl.generation.supervisor", str(__import__("os").getpid()),
                           sys.argv[2], "--", "sh", "-c", sys.argv[1]], start_new_session=True)
print(supervisor.pid, flush=True)
time.sleep(999)
"""


@pytest.fixture
def started(tmp_path: Path) -> tuple[subprocess.Popen[str], psutil.Process, Path]:
    """A trainer, its supervisor, and a file that is to go with the trainer."""
    (tmp_path / "token").touch()
    trainer = subprocess.Popen(
        [sys.executable, "-c", TRAINER, SERVER, str(tmp_path / "token")], stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout
    supervisor = psutil.Process(int(trainer.stdout.readline()))
    until(lambda: len(supervisor.children(recursive=True)) >= 3)
    return trainer, supervisor, tmp_path / "token"


def until(holds: Callable[[], bool], *, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def family(supervisor: psutil.Process) -> list[psutil.Process]:
    return [supervisor, *supervisor.children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_its_trainer(
    started: tuple[subprocess.Popen[str], psutil.Process, Path], number: int
) -> None:
    trainer, supervisor, token = started
    there = family(supervisor)
    trainer.send_signal(number)
    trainer.wait()
    until(lambda: are_gone(there))
    assert not token.exists()


def test_the_server_ends_with_its_supervisor_and_its_files_stay_for_the_next(
    started: tuple[subprocess.Popen[str], psutil.Process, Path],
) -> None:
    trainer, supervisor, token = started
    there = family(supervisor)
    supervisor.send_signal(signal.SIGTERM)
    until(lambda: are_gone(there))
    assert token.exists()
    trainer.kill()
    trainer.wait()


def test_a_supervisor_that_is_killed_takes_the_server_along(
    started: tuple[subprocess.Popen[str], psutil.Process, Path],
) -> None:
    trainer, supervisor, _ = started
    server = supervisor.children()[0]
    left = server.children()
    supervisor.kill()
    until(lambda: are_gone([server]))
    for process in left:  # vLLM's own processes ask the kernel for the same (plugin.py); those of sh do not
        process.kill()
    trainer.kill()
    trainer.wait()


def test_what_a_server_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    command = "setsid sleep 999 & echo $!; sleep 0.3; exit 9"
    supervisor = subprocess.run(
        [sys.executable, "-m", "tinyzero_trl.generation.supervisor", str(os.getpid()), "--", "sh", "-c", command],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
    )
    assert supervisor.returncode == 9
    assert not psutil.pid_exists(int(supervisor.stdout.split()[0]))
