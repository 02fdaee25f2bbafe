"""Reading rows from a file, a folder of files, or a dataset of the hub."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyzero_trl.failures import first_line

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED = (".gz", ".bz2", ".xz")
SUFFIXES = (*TEXTS, ".parquet", *(f"{text}{packed}" for text in TEXTS for packed in PACKED))
"""Endings of the files that can be read, in small or capital letters."""
READABLE = ".parquet, .json, .jsonl, .csv or .tsv (all but parquet also as .gz, .bz2, .xz)"
"""`SUFFIXES` in words, for messages."""
NOT_ROWS = ("card.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files of a folder that describe its rows and hold none."""
BETWEEN = (",", ";", "\t", "|")
"""Separators of the cells of a .csv file; its header tells which one it uses."""
MAX_CELL = 2**27
"""Most characters of a cell; the csv module's own limit is shorter than a long solution."""
LFS = b"version https://git-lfs.github.com/spec/"
"""First bytes of a file that Git LFS has not fetched."""


def read_source(
    source: str,
    *,
    columns: Sequence[str] | None = None,
    config: str | None = None,
    split: str = "train",
    offline: str = "give a file or folder of rows, or source=generated",
) -> list[Any]:
    """Every row of a file (`SUFFIXES`), of a folder of such files, or of one split of a hub dataset.

    columns: the columns to read from a table or the hub, which must exist; None reads all. config: the hub dataset's; a third part
    of its name is a folder with a train.parquet. offline: advice for a person without the hub. Of a folder, the files whose names
    begin with `split` are read, or all files if there are none such. Rows of JSON are returned as they are. Cells of a .csv or
    .tsv file are texts, empty ones null. Raises: ValueError or FileNotFoundError of one line.
    """
    from tinyzero_trl import hub

    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, columns, split)
    if suffix_of(path) or path.is_file() or source.startswith((".", "/", "~")):
        if not path.exists():
            raise FileNotFoundError(f"there is no data file {path.absolute()}{hub.nearest_path(source)}")
        return _read_file(path, columns)
    return _read_hub(source, columns, config, split, offline)


def suffix_of(path: Path) -> str | None:
    """The ending of `path` in small letters, with that of the compression; None if it is none of `SUFFIXES`."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _read_folder(folder: Path, columns: Sequence[str] | None, split: str) -> list[Any]:
    """Rows of every file in `folder`, or else in its `data/`, where hub datasets have their files."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return _read_saved(folder, columns, split)
    files: list[Path] = []
    for place in (folder, folder / "data"):
        if place.is_dir() and not files:
            files = sorted(path for path in place.iterdir() if _is_rows(path))
    if not files:
        raise ValueError(
            f"folder {folder} was not made by a prepare script: it has no card.json; name a {READABLE} file, or a folder that "
            "has such files, which this one has not"
        )
    files = [path for path in files if path.name.lower().startswith(split)] or files
    return [row for path in files for row in _read_file(path, columns)]


def _is_rows(path: Path) -> bool:
    return (
        path.is_file() and suffix_of(path) is not None and path.name not in NOT_ROWS and not path.name.startswith(".")
    )


def _read_saved(folder: Path, columns: Sequence[str] | None, split: str) -> list[Any]:
    """Rows of a folder written by `Dataset.save_to_disk`."""
    import datasets
    import pyarrow as pa

    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise ValueError(f"{folder} cannot be read as a saved dataset: {first_line(error)}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise ValueError(f"{folder} has no split {split}; it has {', '.join(dataset)}")
        dataset = dataset[split]
    return _rows_of(dataset, columns, str(folder))


def _read_file(path: Path, columns: Sequence[str] | None) -> list[Any]:
    suffix = suffix_of(path)
    if suffix is None:
        raise ValueError(f"{path} is not a {READABLE} file, nor a folder of such files or made by a prepare script")
    if not path.is_file():
        raise FileNotFoundError(f"there is no data file {path.absolute()}")
    try:
        if suffix == ".parquet":
            return _read_parquet(path, columns)
        text = _text_of(path, path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error
    if suffix.startswith((".csv", ".tsv")):
        return _read_table(path, text, columns, among=("\t",) if suffix.startswith(".tsv") else BETWEEN)
    return _read_json(path, text, is_lines=not suffix.startswith(".json") or suffix.startswith(".jsonl"))


def _read_parquet(path: Path, columns: Sequence[str] | None) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise _pointer(path)
    try:
        names = pq.read_schema(path).names
        _refuse_missing(columns, names, str(path))
        rows: list[Any] = pq.read_table(path, columns=columns and list(columns)).to_pylist()
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {first_line(error)}") from error
    return rows


def _text_of(path: Path, content: bytes) -> str:
    """The text of a file: decompressed, decoded as UTF-8, without a byte order mark."""
    import bz2
    import gzip
    import lzma
    import zlib

    unpack = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
    packed = path.suffix.lower() if path.suffix.lower() in PACKED else ".gz" if content[:2] == b"\x1f\x8b" else None
    if packed:
        try:
            content = unpack[packed](content)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise ValueError(
                f"{path} cannot be unpacked ({first_line(error)}): it is cut off or no {packed} file"
            ) from error
    if content.startswith(LFS):
        raise _pointer(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"{path} is not UTF-8 text but UTF-16: {_advice('UTF-16')}") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 text (line {line} has the byte 0x{content[error.start]:02x}): {_advice('WINDOWS-1252')}"
        ) from error
    if "\0" in text[:1000]:
        raise ValueError(f"{path} is not UTF-8 text but has zero bytes, as UTF-16 has: {_advice('UTF-16LE')}")
    return text


def _advice(encoding: str) -> str:
    return f"save it as UTF-8, or `iconv -f {encoding} -t UTF-8`"


def _pointer(path: Path) -> ValueError:
    return ValueError(f"{path} is a pointer of Git LFS and not the data: fetch it with `git lfs pull`")


def _read_json(path: Path, text: str, *, is_lines: bool) -> list[Any]:
    """Rows from a JSON list or from one JSON value a line; the content decides, not the file's ending."""
    start = text.lstrip()[:1]
    if not start:
        return []
    if start == "[" or not is_lines:
        try:
            content = json.loads(text)
        except RecursionError:
            raise ValueError(f"{path} is not JSON of rows: it is nested too deep") from None
        except ValueError as error:
            # A list that is cut off is an error; several objects one after the other are rows, one a line.
            if start == "[" and not (is_lines and _is_row(text.lstrip().split("\n", 1)[0])):
                raise ValueError(f"{path} is not JSON: {error}") from error
        else:
            if isinstance(content, list):
                return content
            is_row = isinstance(content, dict) and content and "\n" not in text.strip()
            if not is_row or any(
                isinstance(value, list) and value and isinstance(value[0], dict) for value in content.values()
            ):
                raise ValueError(f"{path} must hold a list of rows, not a {type(content).__name__}")
    return list(_lines(path, text))


def _is_row(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _lines(path: Path, text: str) -> Iterator[Any]:
    # Not splitlines(): a JSON text may contain a Unicode line separator.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except RecursionError:
                raise ValueError(f"{path}, line {number} is nested too deep") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error


def _read_table(path: Path, text: str, columns: Sequence[str] | None, *, among: Sequence[str]) -> list[Any]:
    """Rows of a table with a header. Columns without a name, such as the index that pandas writes, are left out."""
    if not text.strip():
        return []
    header_of = {mark: _records(path, text, mark) for mark in among}
    mark = max(among, key=lambda mark: len(next(header_of[mark], (0, []))[1]))
    records = _records(path, text, mark)
    names = [name.strip() for name in next(records)[1]]
    if not any(names):
        raise ValueError(f"{path}: the first line must name the columns, and names none")
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise ValueError(f"{path}: the first line names {', '.join(twice)} twice")
    _refuse_missing(columns, [name for name in names if name], f"{path}, whose first line must name the columns,")
    rows = []
    for number, cells in records:
        if len(cells) != len(names):
            raise ValueError(
                f"{path}, line {number} has {len(cells)} cells, and the first line names {len(names)} columns"
            )
        rows.append({name: cell or None for name, cell in zip(names, cells, strict=True) if name})
    return rows


def _records(path: Path, text: str, mark: str) -> Iterator[tuple[int, list[str]]]:
    """First line number and cells of each record."""
    import csv

    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    number = 1
    try:
        for cells in reader:
            if cells:
                yield number, cells
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {number} is no row of a table: {error}") from error


def _read_hub(source: str, columns: Sequence[str] | None, config: str | None, split: str, offline: str) -> list[Any]:
    import datasets

    from tinyzero_trl import hub

    owner, _, rest = source.partition("/")
    name, _, folder = rest.partition("/")
    files = {"data_files": f"{folder}/{split}.parquet"} if folder else {}
    is_there, why = hub.reached()
    try:
        dataset = datasets.load_dataset("/".join(filter(None, (owner, name))), config, split=split, **files)
    except Exception as error:  # the hub's client raises a dozen kinds of errors; each becomes the same one line
        near = hub.nearest_source(source)
        reason = f"{type(error).__name__}: {first_line(error)}{'' if is_there else f'; {why}'}"
        raise ValueError(
            f"dataset {source!r} is neither a file or folder here nor readable from the hub ({reason}){near or '.'} "
            f"Offline, {offline}"
        ) from error
    return _rows_of(dataset, columns, source)


def _rows_of(dataset: Any, columns: Sequence[str] | None, where: str) -> list[Any]:
    _refuse_missing(columns, dataset.column_names, where)
    rows: list[Any] = (dataset.select_columns(list(columns)) if columns else dataset).to_list()
    return rows


def _refuse_missing(columns: Sequence[str] | None, names: Sequence[str], where: str) -> None:
    if missing := [column for column in columns or () if column not in names]:
        raise ValueError(f"{where} has no column {', '.join(missing)}; it has {', '.join(names)}")
