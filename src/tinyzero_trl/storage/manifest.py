"""Sealed folders: a checkpoint counts only when its MANIFEST.json, written last, agrees with every file in it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl.storage import trust
from tinyzero_trl.storage.files import write_text

MANIFEST = "MANIFEST.json"
NUM_HASHERS = 8
"""Files flushed and hashed side by side."""
UNFINISHED = "unfinished"
"""Folder of a run in which checkpoints are written before they are renamed into the run's own."""


@dataclass(frozen=True)
class Found:
    """The newest usable checkpoint of a run, and what was passed over to get to it."""

    path: Path | None
    """None when no checkpoint of the run is usable."""
    passed_over: tuple[str, ...]
    """One line for each newer checkpoint that is not usable: name and reason."""


def seal(folder: Path, **facts: Any) -> None:
    """Flush every file of `folder` to disk, then write its manifest: name, size and sha256 of each, `facts`, a signature."""
    paths = sorted(item for item in folder.rglob("*") if item.is_file() and item.name != MANIFEST)
    # The other processes wait for this one, and a large model's checkpoint has hundreds of files; hashing leaves the interpreter free.
    with ThreadPoolExecutor(NUM_HASHERS) as threads:
        entries = list(threads.map(_flushed, paths))
    files = {str(path.relative_to(folder)): entry for path, entry in zip(paths, entries, strict=True)}
    content = {"schema": 1, **facts, "files": files}
    content["signature"] = trust.signature(trust.canonical(content))
    write_text(folder / MANIFEST, json.dumps(content, indent=1), is_flushed=True)
    _flush(folder)
    _flush(folder.parent)


def publish(beside: Path, folder: Path) -> None:
    """Rename a sealed folder to its place. What is there goes first: another attempt's, whose step was done again.

    The seal says what is whole, so a file system whose rename is a copy in steps loses nothing by it.
    """
    if folder.exists():
        os.replace(folder, beside.with_name(f"{beside.name}.replaced"))
    os.replace(beside, folder)
    _flush(folder.parent)
    shutil.rmtree(beside.parent)


def is_sealed(folder: Path) -> bool:
    """Whether a manifest is there; `fault` says whether it is true."""
    return (folder / MANIFEST).is_file()


def facts(folder: Path) -> dict[str, Any]:
    """What the manifest says about the folder as a whole (step, world size, ...)."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key not in ("files", "signature")}


def check_trusted(checkpoint: Path, *, trusts_code: bool) -> None:
    """Raises: ConfigError where a checkpoint without a fault has pickles that no run of this user wrote."""
    content = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    trust.check_pickles(checkpoint, content, trusts_code=trusts_code)


def fault(folder: Path) -> str | None:
    """Why `folder` cannot be used, or None when every file of its manifest is there, whole and unchanged."""
    if not folder.is_dir():
        return "is not a folder"
    if not is_sealed(folder):
        return "was not finished (it has no manifest)"
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if damage := _damage(content):
            return f"has a damaged manifest ({MANIFEST} {damage})"
        if not content["files"] and any(item.is_file() and item.name != MANIFEST for item in folder.rglob("*")):
            return f"has a damaged manifest ({MANIFEST} names no files)"
        for name, said in content["files"].items():
            path = folder / name
            if not path.is_file():
                return f"lacks {name}"
            if path.stat().st_size != said["size"]:
                return f"has {name} of {path.stat().st_size} bytes instead of {said['size']}"
            if _sha256(path) != said["sha256"]:
                return f"has a changed {name} (its sha256 differs)"
    except (ValueError, RecursionError):
        return f"has a damaged manifest ({MANIFEST} is not JSON)"
    except OSError as error:
        return f"cannot be read ({error.filename}: {error.strerror})"
    return None


def _damage(content: Any) -> str | None:
    """What of a manifest is not as `seal` writes it."""
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
    """Checkpoint folders of a run, oldest first, sealed or not."""
    numbered = [path for path in run_folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]
    return sorted(numbered, key=lambda path: int(path.name.split("-")[1]))


def newest_usable(run_folder: Path) -> Found:
    """The newest checkpoint without a fault."""
    passed_over: list[str] = []
    for path in reversed(checkpoints(run_folder)):
        reason = fault(path)
        if reason is None:
            return Found(path, tuple(passed_over))
        passed_over.append(f"{path.name} {reason}")
    return Found(None, tuple(passed_over))


def _flushed(path: Path) -> dict[str, Any]:
    """The entry of a file in the manifest, once the file is on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
