"""Sealed folders: a checkpoint is usable only if its MANIFEST.json, written last, agrees with every file in it."""

from __future__ import annotations

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl.storage import trust
from tinyzero_trl.storage.files import flush_folder, put_in_place, sha256_of, write_text

MANIFEST = "MANIFEST.json"
NUM_HASHERS = 8
"""Number of threads that flush and hash files."""
UNFINISHED = "unfinished"
"""Name of the folder in a run folder where a checkpoint is written before it is renamed to its place."""


@dataclass(frozen=True)
class Found:
    """The newest usable checkpoint of a run, and the newer ones that are not usable."""

    path: Path | None
    """Folder of the checkpoint; None if no checkpoint of the run is usable."""
    passed_over: tuple[str, ...]
    """One line for each newer checkpoint: its name, and why it is not usable."""


def seal(folder: Path, **facts: Any) -> None:
    """Flush every file of `folder` to the disk, then write the manifest: name, size and sha256 of each file, `facts` and a signature."""
    paths = sorted(item for item in folder.rglob("*") if item.is_file() and item.name != MANIFEST)
    # All other processes wait for this one, and a checkpoint may have hundreds of files. Hashing releases the interpreter's lock.
    with ThreadPoolExecutor(NUM_HASHERS) as threads:
        entries = list(threads.map(_flushed, paths))
    files = {str(path.relative_to(folder)): entry for path, entry in zip(paths, entries, strict=True)}
    content = {"schema": 1, **facts, "files": files}
    content["signature"] = trust.signature(trust.canonical(content))
    write_text(folder / MANIFEST, json.dumps(content, indent=1), is_flushed=True)
    flush_folder(folder)
    flush_folder(folder.parent)


def publish(beside: Path, folder: Path) -> None:
    """Rename the sealed folder `beside` to `folder`, and remove the folder `unfinished/` around it.

    A checkpoint that an earlier attempt left at `folder` is replaced. The seal tells whether a folder is whole, so a file system
    whose rename is not atomic does no harm.
    """
    put_in_place(beside, folder)
    shutil.rmtree(beside.parent)


def is_sealed(folder: Path) -> bool:
    """True if the folder has a manifest; `why_not_usable` checks the files against it."""
    return (folder / MANIFEST).is_file()


def facts(folder: Path) -> dict[str, Any]:
    """The manifest's entries about the folder as a whole (step, world size, ...)."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key not in ("files", "signature")}


def check_trusted(checkpoint: Path, *, trusts_code: bool) -> None:
    """Refuse a usable checkpoint with pickles that no run of this user wrote. Raises: ConfigError."""
    content = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    trust.check_pickles(checkpoint, content, trusts_code=trusts_code)


def why_not_usable(folder: Path) -> str | None:
    """The reason why `folder` cannot be used, or None if every file of its manifest is there, whole and unchanged."""
    if not folder.is_dir():
        return "is not a folder"
    if not is_sealed(folder):
        return "was not finished (it has no manifest)"
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if damage := _why_not_a_manifest(content):
            return f"has a damaged manifest ({MANIFEST} {damage})"
        if not content["files"] and any(item.is_file() and item.name != MANIFEST for item in folder.rglob("*")):
            return f"has a damaged manifest ({MANIFEST} names no files)"
        for name, said in content["files"].items():
            path = folder / name
            if not path.is_file():
                return f"lacks {name}"
            if path.stat().st_size != said["size"]:
                return f"has {name} of {path.stat().st_size} bytes instead of {said['size']}"
            if sha256_of(path) != said["sha256"]:
                return f"has a changed {name} (its sha256 differs)"
    except (ValueError, RecursionError):
        return f"has a damaged manifest ({MANIFEST} is not JSON)"
    except OSError as error:
        return f"cannot be read ({error.filename}: {error.strerror})"
    return None


def _why_not_a_manifest(content: Any) -> str | None:
    """The first way in which a manifest differs from what `seal` writes, or None."""
    if not isinstance(content, dict):
        return "holds no object"
    files = content.get("files")
    if not isinstance(files, dict):
        return "has no files"
    for name, said in files.items():
        if not isinstance(said, dict) or type(said.get("size")) is not int or not isinstance(said.get("sha256"), str):
            return f"does not say size and sha256 of {name}"
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            return f"names {name!r}, which is not in the folder"
    if type(content.get("step", 0)) is not int or type(content.get("world_size", 1)) is not int:
        return "has a step or world_size that is no number"
    return None


def checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, including those that are not sealed."""
    numbered = [path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]
    return sorted(numbered, key=lambda path: int(path.name.split("-")[1]))


def newest_usable(run_folder: Path) -> Found:
    """The newest usable checkpoint of a run."""
    passed_over: list[str] = []
    for path in reversed(checkpoints(run_folder)):
        reason = why_not_usable(path)
        if reason is None:
            return Found(path, tuple(passed_over))
        passed_over.append(f"{path.name} {reason}")
    return Found(None, tuple(passed_over))


def _flushed(path: Path) -> dict[str, Any]:
    """The manifest entry of a file, written to the disk first."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}
