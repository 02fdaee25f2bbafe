"""The process between a trainer and its vLLM server: it ends the server when the trainer ends, whatever ends the trainer.

python -m tinyzero_trl.generation.supervisor <pid of the trainer> [<file or folder>...] -- <command...>; what is named goes with the trainer.
Standard library only: it starts in 50 ms.
A signal to a trainer may be SIGKILL, which nothing in the trainer can answer, and a vLLM server is up to a dozen processes.
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
"""From SIGTERM to SIGKILL."""
LOOK_EVERY = 0.1
PR_SET_CHILD_SUBREAPER = 36


def main(argv: Sequence[str]) -> int:
    """Run the command until it ends, the trainer ends, or SIGTERM comes; leaves no process of it behind."""
    at = list(argv).index("--")
    trainer, leftovers, command = int(argv[0]), [Path(name) for name in argv[1:at]], argv[at + 1 :]
    told = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: told.append(number))
    if sys.platform == "linux":
        # What the server leaves behind becomes our child, so that it can be found.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)
    while server.poll() is None and os.getppid() == trainer and not told:
        time.sleep(LOOK_EVERY)
    end(server)
    if os.getppid() != trainer:
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return server.returncode or 0


def end(server: subprocess.Popen[bytes]) -> None:
    """End the process, its group, and whatever of its descendants is left."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        if not _tell(server.pid, number):
            break
        until = time.monotonic() + seconds
        while time.monotonic() < until and _is_group_there(server):
            time.sleep(LOOK_EVERY)
    server.wait()
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _tell(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _is_group_there(server: subprocess.Popen[bytes]) -> bool:
    server.poll()
    # Reap what became ours: a dead process that nobody waited for still counts as a member of its group.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-server.pid, os.WNOHANG)[0]:
            pass
    return _tell(server.pid, 0)


def _children() -> list[int]:
    try:
        with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
