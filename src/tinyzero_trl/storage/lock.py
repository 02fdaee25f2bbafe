"""The lock of a run folder: one process at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tinyzero_trl.failures import RunLocked
from tinyzero_trl.storage import files


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the folder `path`. The kernel frees the lock of a process that dies, so a stale run.lock does no harm.

    Temporary files that a killed process left in `path` are removed.
    Raises: RunLocked that names the process holding the lock; OSError if the file system allows no lock (`failures.explained`).
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = path / "run.lock"
    with os.fdopen(files.open_in_place(lock, os.O_RDWR), "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunLocked(f"{path} is in use by {file.read().strip() or 'another process'}") from None
        file.seek(0)
        file.truncate()
        try:
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
            )
            file.flush()
        except OSError as error:
            error.filename = str(lock)  # a failed write names no file
            raise
        files.sweep(path)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
