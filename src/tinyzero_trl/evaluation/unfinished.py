"""Completions of an unfinished evaluation, in files that remain when the process is killed: the store behind `evaluating`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyzero_trl import storage

FOLDER, REQUEST = "unfinished", "request.json"
"""Names of the folder in an evaluation folder, and of the file in it that tells which evaluation the shards belong to."""
COLUMNS = {"place", "completion", "num_completion_tokens", "is_truncated"}
"""Columns of a shard."""
Completion = dict[str, Any]
"""A model's completion without a verdict: {"completion", "num_completion_tokens", "is_truncated"}."""


def begin(folder: Path, request: Mapping[str, Any], *, overwrite: bool) -> dict[int, Completion]:
    """The completions that an earlier attempt kept, by place (problem x k + sample); the folder is made ready for `keep`.

    request: everything that two attempts must share to be the same evaluation; plain JSON.
    The completions of a shard that cannot be read are drawn again.
    Raises: ValueError if the shards belong to another request.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = folder / FOLDER
    before = _request(place)
    asked = json.loads(json.dumps(request))
    if before is not None and before != asked:
        if not overwrite and any(place.glob("*.parquet")):
            changed = next(name for name in {**asked, **before} if before.get(name) != asked.get(name))
            raise ValueError(
                f"{folder} holds an evaluation that was stopped, with another {changed} ({before.get(changed)!r}, now "
                f"{asked.get(changed)!r}); give this one a --name of its own, or --overwrite"
            )
        before = None
    if before is None:
        clear(folder)
        place.mkdir(parents=True)
        storage.write_text(place / REQUEST, json.dumps(asked, indent=1) + "\n")
    found: dict[int, Completion] = {}
    for path in sorted(place.glob("*.parquet")):
        try:
            rows = pq.read_table(path).to_pylist()
        except (pa.ArrowException, OSError, ValueError):
            continue
        if all(row.keys() == COLUMNS and None not in row.values() for row in rows):
            found.update({row.pop("place"): row for row in rows})
    return found


def keep(folder: Path, places: Sequence[int], completions: Sequence[Completion]) -> None:
    """Write one shard of completions, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = folder / FOLDER / f"{places[0]:08d}.parquet"
    rows = [{"place": place, **completion} for place, completion in zip(places, completions, strict=True)]
    with storage.replacing(target) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)


def clear(folder: Path) -> None:
    """Remove all shards."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _request(place: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((place / REQUEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
