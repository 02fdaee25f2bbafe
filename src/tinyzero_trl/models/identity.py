"""The identity of a model, for three questions.

Which weights were evaluated? `identity_of` reads every byte, and anybody can check its hash. Have they changed since? `weights_of`
compares names, sizes and times. Which files have changed since a run began? `model_files` hashes each, large ones in part.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from tinyzero_trl.models.location import ModelLocation, load_path
from tinyzero_trl.storage import MANIFEST, sha256_of

SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py")
"""Endings of the files that a model and its tokenizer load from."""
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""Patterns of files with weights; the first one that matches is used."""
WHOLE_BYTES = 32 * 2**20
"""Largest file that `model_files` hashes whole.

Of a larger one it reads the size and both ends, so that no start takes minutes.
"""


def model_files(name: str, *, revision: str | None = None) -> dict[str, str]:
    """Short hashes by file name of the model that `name` loads, its tokenizer included; `commit` of a model on the hub.

    name: a folder, `tiny` or a hub id. Empty for an empty name, and for a hub model that is not in the cache.
    """
    place = load_path(name)
    if not place:
        return {}
    folder = Path(place).expanduser()
    if folder.is_dir():
        files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.is_file()]
        return {path.name: _short_hash(path) for path in files}
    commit = _commit(place, revision)
    return {"commit": commit} if commit else {}


def weights_of(location: ModelLocation) -> str:
    """A text that changes when the weights do, found without reading them: the seal of a sealed folder, the id of a hub model.

    Of another folder it is a hash of file names, sizes and times, so that a copied or touched folder counts as changed.
    """
    if sealed := _seal(Path(location.shown)):
        return sealed
    places = [Path(place) for place in (location.path, location.adapter) if place and Path(place).is_dir()]
    files = sorted(file for place in places for file in place.iterdir() if file.is_file())
    if not files:
        return location.path
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def identity_of(location: ModelLocation) -> dict[str, Any]:
    """`model_sha256` and the files it covers, the same wherever the folder is. An adapter has `base_model_sha256` too.

    Of a sealed folder it is the hash of the manifest, which names the hash of every file. Of another folder it is the hash of
    what `sha256sum *.safetensors *.json` prints, so that anybody can check it; that reads every byte of the weights.
    Of a hub model it is None, and `model_commit` names the version that was read.
    """
    found = _identity(location.shown)
    if location.adapter:
        found |= {f"base_{name}": value for name, value in _identity(location.path).items()}
    return found


def _identity(place: str) -> dict[str, Any]:
    folder = Path(place)
    if not folder.is_dir():
        return {"model_sha256": None, "model_commit": _commit(place)}
    if sealed := _seal(folder):
        return {"model_sha256": sealed, "model_sha256_of": MANIFEST}
    weights = next((found for kind in WEIGHTS if (found := sorted(folder.glob(kind)))), [])
    files = sorted({*weights, *folder.glob("*.json")}, key=lambda file: file.name)
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
    return {
        "model_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "model_sha256_of": [file.name for file in files],
    }


def _short_hash(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256; above WHOLE_BYTES, of its size and both ends."""
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return sha256_of(path)[:16]
    with path.open("rb") as file:
        digest = hashlib.sha256(str(size).encode() + file.read(2**20))
        file.seek(-(2**20), os.SEEK_END)
        digest.update(file.read())
    return digest.hexdigest()[:16]


def _seal(folder: Path) -> str | None:
    """The hash of the folder's manifest; None if the folder is not sealed."""
    file = folder / MANIFEST
    return sha256_of(file) if file.is_file() else None


def _commit(hub_id: str, revision: str | None = None) -> str | None:
    """The commit of a hub model whose config.json is in the cache, which is the name of its folder there; None without one."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None
