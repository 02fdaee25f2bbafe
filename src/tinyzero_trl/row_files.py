"""Rows as they lie in a file or in a data set of the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_source(
    source: str,
    *,
    columns: Sequence[str] | None = None,
    config: str | None = None,
    split: str = "train",
    offline: str = "give a .parquet, .json or .jsonl file, or source=generated",
) -> list[Any]:
    """Every row of a .parquet, .json or .jsonl file, or of one split of a hub dataset.

    columns: read of parquet and hub, which must have them; None reads all. config: of the hub dataset; a third part of
    its name is a folder with a train.parquet. offline: what to do where there is no hub. Rows of JSON are whatever stands there.
    Raises: ValueError or FileNotFoundError with one line.
    """
    path = Path(source)
    is_file_name = path.suffix in (".parquet", ".json", ".jsonl")
    if is_file_name or path.is_file() or source.startswith((".", "/", "~")):
        return _read_file(path.expanduser(), columns)
    return _read_hub(source, columns, config, split, offline)


def _read_file(path: Path, columns: Sequence[str] | None) -> list[Any]:
    if path.suffix not in (".parquet", ".json", ".jsonl"):
        raise ValueError(f"{path} is not a .parquet, .json or .jsonl file, nor a folder made by a prepare script")
    if not path.is_file():
        raise FileNotFoundError(f"there is no data file {path.absolute()}")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(path).names
            if missing := [column for column in columns or () if column not in names]:
                raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}")
            rows: list[Any] = pq.read_table(path, columns=columns and list(columns)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} cannot be read as parquet: {error}") from error
        return rows
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix == ".json":
        return _read_json(path, text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


def _read_json(path: Path, text: str) -> list[Any]:
    if not text.strip():
        return []
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of rows, not a {type(rows).__name__}")
    return rows


def _read_hub(source: str, columns: Sequence[str] | None, config: str | None, split: str, offline: str) -> list[Any]:
    import datasets

    owner, _, rest = source.partition("/")
    name, _, folder = rest.partition("/")
    files = {"data_files": f"{folder}/{split}.parquet"} if folder else {}
    try:
        dataset = datasets.load_dataset("/".join(filter(None, (owner, name))), config, split=split, **files)
    except Exception as error:  # the hub's client raises a dozen kinds; each becomes the same one line
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"dataset {source!r} is neither a file or folder here nor readable from the hub ({type(error).__name__}: "
            f"{first_line}). Offline, {offline}"
        ) from error
    if missing := [column for column in columns or () if column not in dataset.column_names]:
        raise ValueError(f"{source} has no column {', '.join(missing)}; it has {', '.join(dataset.column_names)}")
    rows: list[Any] = (dataset.select_columns(list(columns)) if columns else dataset).to_list()
    return rows
