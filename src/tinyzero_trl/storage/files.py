"""Files and folders that appear whole or not at all, and that follow no link laid in their way. Standard library only.

Whoever may write to a folder could lay a link under the name of a temporary file, and what a run writes would go through it.
So a temporary file has a name that nobody can guess, and is created anew or not at all.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PART = ".part"
"""Ending of a file that is being written."""
MAX_NAME_BYTES = 255
PROBE_BYTES = 2**16
"""What a run writes before anything else is less: run.yaml, a lock, some lines of metrics."""
NAME_BYTES = 200
"""Of a target's name in that of its part: a file name has 255 at most."""


@contextmanager
def replacing(target: Path, *, is_private: bool = False, is_flushed: bool = False) -> Iterator[IO[bytes]]:
    """A new file beside `target` that takes its place when the block ends well, and is removed when it does not.

    It gets the permissions of the file that was there, or of any new file; is_private: those of a secret, 0600.
    is_flushed: its bytes are on the disk before its name is. `file.name` is for libraries that write to a path only.
    Raises: OSError that names `target`.
    """
    try:
        before = os.lstat(target)
    except OSError:
        before = None
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, and a file is to be written there", str(target))
    part = _beside(target)
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600 if is_private else 0o666)
        try:
            with open(part, "r+b", opener=lambda *_: descriptor) as file:
                if before is not None and stat.S_ISREG(before.st_mode) and not is_private:
                    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
                yield file
                file.flush()
                if is_flushed:
                    os.fsync(descriptor)
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    except OSError as error:
        # A write that fails names no file at all, and the part's own name says nothing to a person.
        if error.errno is not None and (error.filename is None or str(error.filename) == str(part)):
            error.filename, error.filename2 = str(target), None
        raise


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """The same of a folder: a new one beside `target`, with the permissions of any new folder. What is at `target` goes first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target)
    beside.mkdir()
    try:
        yield beside
        remove(target)
        os.replace(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def write_text(target: Path, text: str, *, is_private: bool = False, is_flushed: bool = False) -> None:
    """Write `text` as UTF-8 to `target`, whole or not at all. Raises: as `replacing`."""
    with replacing(target, is_private=is_private, is_flushed=is_flushed) as file:
        file.write(text.encode("utf-8"))


def write_new(target: Path, content: bytes) -> None:
    """Write a file that only this user can read, whole, where there is none. Raises: FileExistsError where there is one."""
    part = _beside(target)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(content)
        os.link(part, target)  # unlike a rename it takes nobody's place: of two writers at once, one is told
    finally:
        part.unlink(missing_ok=True)


def open_in_place(path: Path, flags: int) -> int:
    """Descriptor of the file `path`, made if need be, for writing without a rename: a lock, a log.

    flags: such as os.O_APPEND. Raises: OSError where it is a link or a folder, or cannot be opened.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and a run writes through none", str(path))
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def append_text(path: Path, text: str) -> None:
    """Add `text` at the end of `path`, which is made if need be. Raises: as `open_in_place`."""
    with os.fdopen(open_in_place(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
        file.write(text.encode("utf-8"))


def probe(folder: Path) -> None:
    """Write and remove a file in `folder`, or in the nearest of its parents that is there; makes no folder.

    Raises: OSError that names `folder`, where no run could write in it.
    """
    place = folder
    while True:
        try:
            mode = os.stat(place).st_mode
            break
        except FileNotFoundError:
            if place.is_symlink():
                raise FileNotFoundError(errno.ENOENT, "it is a link to nothing", str(place)) from None
            _refuse_long(place.name, folder)
            place = place.parent
        except NotADirectoryError:
            place = place.parent
    if not stat.S_ISDIR(mode):
        what = "it" if place == folder else str(place)
        raise NotADirectoryError(
            errno.ENOTDIR, f"{what} is a file and not a folder; choose another folder", str(folder)
        )
    part = _beside(place / "probe")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, bytes(PROBE_BYTES))
            os.fsync(descriptor)  # some disks say only here that they are full
        finally:
            os.close(descriptor)
            part.unlink()
    except OSError as error:
        error.filename = str(folder)
        raise


def _refuse_long(name: str, folder: Path) -> None:
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(folder))


def fresh_folder(path: Path) -> None:
    """Make the folder `path`, empty: what lies there is removed, of a link the link alone."""
    remove(path)
    path.mkdir(parents=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing where nothing is."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def sweep(folder: Path) -> None:
    """Remove the parts that killed processes left in `folder`. The caller holds the lock of the folder."""
    for part in folder.glob(f".*{PART}"):
        if not part.is_dir() or part.is_symlink():
            part.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """A name in the same folder that nobody can guess."""
    stem = os.fsencode(target.name)[:NAME_BYTES].decode("utf-8", errors="ignore")
    return target.with_name(f".{stem}.{secrets.token_hex(8)}{PART}")
