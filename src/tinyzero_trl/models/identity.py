"""Which weights a location holds: the seal of their folder, or else its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tinyzero_trl.models.location import ModelLocation
from tinyzero_trl.storage import MANIFEST

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
"""Files that weights are in, the first kind that is there."""


def weights_of(location: ModelLocation) -> str:
    """Changes when the weights do, and costs nothing: the seal of their folder, or else names, sizes and times of its files; of the hub its id."""
    if sealed := _seal(Path(location.shown)):
        return sealed
    places = [Path(place) for place in (location.path, location.adapter) if place and Path(place).is_dir()]
    files = sorted(file for place in places for file in place.iterdir() if file.is_file())
    if not files:
        return location.path
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def identity(location: ModelLocation) -> dict[str, Any]:
    """`model_sha256` and what it is of, wherever the folder stands; of an adapter also those of the model below, as `base_model_sha256`.

    Of a sealed folder the hash is that of its manifest, which names the hash of every file. Of another it is that of the
    output of `sha256sum *.safetensors *.json`, so that anybody can check it. Reads every byte of unsealed weights.
    Of the hub it is None, and `model_commit` says which version was read.
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
    lines = "".join(f"{_sha256(file)}  {file.name}\n" for file in files)
    return {
        "model_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "model_sha256_of": [file.name for file in files],
    }


def _seal(folder: Path) -> str | None:
    file = folder / MANIFEST
    return _sha256(file) if file.is_file() else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(hub_id: str) -> str | None:
    """The commit whose config.json lies in the cache, where the hub's own name for it can be read off."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(hub_id, "config.json")
    return Path(file).parent.name if isinstance(file, str) else None
