"""The process between a trainer and its vLLM server: it ends the server when the trainer ends, for whatever reason.

    python -m tinyzero_trl.generation.supervisor <pid of the trainer> [<file or folder>...] -- <command of the server...>

The named files and folders are removed when the trainer ends. A process of its own is needed because a trainer cannot react to
SIGKILL, and a vLLM server is up to a dozen processes. Standard library only, so that it starts in 50 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tinyzero_trl.generation.plugin import die_with_parent

GRACE_SECONDS = 5.0
"""Seconds from SIGTERM to SIGKILL."""
SECONDS_BETWEEN_CHECKS = 0.1
PR_SET_CHILD_SUBREAPER = 36


def main(argv: Sequence[str]) -> int:
    """Run the command until it ends, the trainer ends, or SIGTERM arrives; then end all its processes. Returns its exit code."""
    at = list(argv).index("--")
    trainer, leftovers, command = int(argv[0]), [Path(name) for name in argv[1:at]], argv[at + 1 :]
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: signals.append(number))
    if sys.platform == "linux":
        # Processes that the server leaves behind become our children, so that we can find them.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)
    while server.poll() is None and os.getppid() == trainer and not signals:
        time.sleep(SECONDS_BETWEEN_CHECKS)
    end(server)
    if os.getppid() != trainer:
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return server.returncode or 0


def end(server: subprocess.Popen[bytes]) -> None:
    """End the process, its group, and all its descendants."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        if not _signal(server.pid, number):
            break
        until = time.monotonic() + seconds
        while time.monotonic() < until and _is_group_there(server):
            time.sleep(SECONDS_BETWEEN_CHECKS)
    server.wait()
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _is_group_there(server: subprocess.Popen[bytes]) -> bool:
    server.poll()
    # Reap dead children: one that nobody waited for still counts as a member of its group.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-server.pid, os.WNOHANG)[0]:
            pass
    return _signal(server.pid, 0)


def _children() -> list[int]:
    try:
        with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
