"""Atomic writes: a file or folder appears whole or not at all, and no symbolic link is followed. Standard library only.

Anybody who may write to a folder could place a link under the name of a temporary file, and a run would then write through it.
So a temporary file has a name that nobody can guess, and opening it fails if the name exists.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PART = ".part"
"""Ending of the name of a file that is being written."""
MAX_NAME_BYTES = 255
"""Longest file name that Linux allows, in bytes."""
PROBE_BYTES = 2**16
"""Size of the file that `probe` writes: more than run.yaml, a lock and the first metrics together."""
NAME_BYTES = 200
"""Bytes of a target's name that the name of its temporary file keeps, so that it stays below MAX_NAME_BYTES."""


@contextmanager
def replacing(target: Path, *, is_private: bool = False, is_flushed: bool = False) -> Iterator[IO[bytes]]:
    """A new file beside `target` that replaces it if the block succeeds, and is removed if the block raises.

    The file gets the permissions of the one it replaces, or those of any new file; is_private: 0600, as a secret needs.
    is_flushed: the bytes are on the disk before the name is. `file.name` serves libraries that write to a path.
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
        # A failed write names no file, and the temporary name tells a person nothing.
        if error.errno is not None and (error.filename is None or str(error.filename) == str(part)):
            error.filename, error.filename2 = str(target), None
        raise


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that replaces it if the block succeeds, and is removed if the block raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(target)
    beside.mkdir()
    try:
        yield beside
        put_in_place(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def put_in_place(beside: Path, target: Path) -> None:
    """Rename the folder `beside` to `target`.

    What was at `target` is moved aside first, and removed once the new name is on the disk.
    """
    old = _beside(beside)
    with suppress(FileNotFoundError):
        os.replace(target, old)
    os.replace(beside, target)
    flush_folder(target.parent)
    remove(old)


def write_text(target: Path, text: str, *, is_private: bool = False, is_flushed: bool = False) -> None:
    """Write `text` as UTF-8 to `target`, whole or not at all. Raises: OSError that names `target`."""
    with replacing(target, is_private=is_private, is_flushed=is_flushed) as file:
        file.write(text.encode("utf-8"))


def write_new(target: Path, content: bytes) -> None:
    """Write a new file that only this user can read, whole or not at all.

    Raises: FileExistsError if `target` exists.
    """
    part = _beside(target)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(content)
        os.link(part, target)  # unlike a rename, this fails for the second of two writers
    finally:
        part.unlink(missing_ok=True)


def open_in_place(path: Path, flags: int) -> int:
    """Descriptor of the file `path`, created if missing, for files that are written in place: a lock, a log.

    flags: such as os.O_APPEND. Raises: OSError if `path` is a link or a folder, or cannot be opened.
    """
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, and a run writes through none", str(path))
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def append_text(path: Path, text: str) -> None:
    """Append `text` to the file `path`, created if missing.

    Raises: OSError if `path` is a link or a folder, or cannot be opened.
    """
    with os.fdopen(open_in_place(path, os.O_WRONLY | os.O_APPEND), "ab") as file:
        file.write(text.encode("utf-8"))


def probe(folder: Path) -> None:
    """Write and remove a file in `folder`, or in its nearest existing parent, to find out early whether a run can write there.

    Creates no folder. Raises: OSError that names `folder`, if it cannot be written.
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
            os.fsync(descriptor)  # some file systems report a full disk only here
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
    """Create the empty folder `path`. Anything at that path is removed; of a link, only the link."""
    remove(path)
    path.mkdir(parents=True)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content; a missing path is no error."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def sweep(folder: Path) -> None:
    """Remove temporary files that killed processes left in `folder`. The caller holds the folder's lock."""
    for part in folder.glob(f".*{PART}"):
        if not part.is_dir() or part.is_symlink():
            part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_folder(folder: Path) -> None:
    """Write the names in `folder` to the disk, so that they survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _beside(target: Path) -> Path:
    """A path in the same folder with a name that nobody can guess."""
    stem = os.fsencode(target.name)[:NAME_BYTES].decode("utf-8", errors="ignore")
    return target.with_name(f".{stem}.{secrets.token_hex(8)}{PART}")
