"""Rows as people have them: every kind of file that is read, and what is said of one that cannot be."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyzero_trl.data.sources import SUFFIXES, read_source, suffix_of
from tinyzero_trl.tasks import TASKS, countdown

ROWS = [{"nums": [19, 36, 55 + number], "target": 74 + number} for number in range(200)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LIST = json.dumps(ROWS)
CSV = "nums,target\n" + "".join(f'"{row["nums"]}",{row["target"]}\n' for row in ROWS)


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def loaded(source: Path) -> list[dict[str, Any]]:
    """The rows of all three splits, in their order by target."""
    rows = [row for split in ("train", "validation", "test") for row in countdown.load(split=split, source=str(source))]
    return sorted(rows, key=lambda row: row["target"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", LINES.encode()),
        ("rows.ndjson", LINES.encode()),
        ("rows.jsonl", b"\xef\xbb\xbf" + LINES.encode()),
        ("rows.jsonl", LINES.replace("\n", "\r\n\r\n").encode()),
        ("rows.jsonl", LIST.encode()),
        ("rows.jsonl", json.dumps(ROWS, indent=2).encode()),
        ("rows.json", LIST.encode()),
        ("rows.json", b"\xef\xbb\xbf" + LIST.encode()),
        ("rows.json", LINES.encode()),
        ("ROWS.JSON", ("\n" + LINES).encode()),
        ("Rows.JsonL", LINES.encode()),
        ("rows.jsonl.gz", gzip.compress(LINES.encode())),
        ("rows.json.gz", gzip.compress(LIST.encode())),
        ("rows.JSONL.GZ", gzip.compress(LINES.encode())),
        ("rows.jsonl", gzip.compress(LINES.encode())),
        ("rows.jsonl.bz2", bz2.compress(LINES.encode())),
        ("rows.csv.xz", lzma.compress(CSV.encode())),
        ("rows.csv", CSV.encode()),
        ("rows.CSV", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()),
        ("rows.csv", CSV.replace('",', '";').replace("nums,", "nums;").encode()),
        ("rows.csv", CSV.replace("[", "").replace("]", "").encode()),
        ("rows.csv", CSV.replace(", ", " ").encode()),
        ("rows.tsv", CSV.replace('",', '"\t').replace("nums,", "nums\t").replace('"', "").encode()),
        ("rows.csv.gz", gzip.compress(CSV.encode())),
    ],
)
def test_a_file_is_read_whatever_wrote_it(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert loaded(tmp_path / name) == ROWS


def test_a_table_of_pandas_is_read_without_its_index_and_with_whatever_other_columns(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"nums": [pandas.Series(row["nums"]).to_numpy() for row in ROWS]})
    frame["target"] = [row["target"] for row in ROWS]
    frame["note"] = ['says "no",\nand; goes on'] * len(ROWS)
    frame.to_csv(tmp_path / "rows.csv")
    assert loaded(tmp_path / "rows.csv") == ROWS
    assert read_source(str(tmp_path / "rows.csv"))[3]["note"] == 'says "no",\nand; goes on'
    assert "" not in read_source(str(tmp_path / "rows.csv"))[0]


def test_a_parquet_file_of_texts_is_read_as_a_table_is(tmp_path: Path) -> None:
    texts = [{"nums": str(row["nums"]), "target": str(row["target"])} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(texts), tmp_path / "rows.PARQUET")
    assert loaded(tmp_path / "rows.PARQUET") == ROWS


def test_multiplication_and_mathematics_read_a_table_too(tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("a,b\n" + "".join(f"{a},{a + 1}\n" for a in range(12, 200)))
    rows = TASKS["multiplication"].load(split="train", source=str(tmp_path / "products.csv"))
    assert {type(row["a"]) for row in rows} == {int}
    cells = "".join(f'"What is $[0, {n}]$, ""exactly""?","[0, {n}]",0.{n},00{n}\n' for n in range(10, 99))
    (tmp_path / "math.csv").write_text("problem,answer,rate,level\n" + cells)
    rows = (
        TASKS["math"]
        .load(
            split="train",
            source=str(tmp_path / "math.csv"),
            pass_rate_column="rate",
            min_pass_rate=0.5,
            level_column="level",
        )
        .to_list()
    )
    # A text stays the text it is: an interval is no list, and 0050 is no 50.
    assert rows[0] == {
        "problem": 'What is $[0, 50]$, "exactly"?',
        "answer": "[0, 50]",
        "source": str(tmp_path / "math.csv"),
        "level": "0050",
    }


def test_a_folder_of_files_is_read_its_training_files_where_names_say_so(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:50]))
    (data / "a.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    (data / ".hidden.json").write_text("no rows")
    (data / "dataset_infos.json").write_text("{}")
    (data / "README.md").write_text("rows")
    assert loaded(data) == ROWS
    assert loaded(tmp_path) == ROWS  # as a data set of the hub is laid out
    (data / "train-00000-of-00001.jsonl").write_text(json.dumps({"nums": [1, 2, 3], "target": 6}) + "\n")
    assert read_source(str(tmp_path)) == [{"nums": [1, 2, 3], "target": 6}]


def test_a_dataset_saved_to_disk_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(tmp_path / "several"))
    assert loaded(tmp_path / "one") == ROWS
    assert loaded(tmp_path / "several") == ROWS
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"one cannot be read as a saved dataset"):
        loaded(tmp_path / "one")


GOOD = '{"nums": [1, 2, 3], "target": 6}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD.encode("utf-16"), "a.jsonl is not UTF-8 text but UTF-16: save it as UTF-8, or `iconv"),
        ("a.jsonl", GOOD.encode("utf-16-le"), "has zero bytes, as UTF-16 has"),
        ("a.csv", "nums,target,note\n1 2 3,6,é\n".encode("latin-1"), r"is not UTF-8 text \(line 2 has the byte 0xe9\)"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode() * 999)[:-20], "cannot be unpacked .*it is cut off or no .gz"),
        ("a.jsonl.gz", GOOD.encode(), "cannot be unpacked .*it is cut off or no .gz"),
        ("a.json.xz", b"PK", "cannot be unpacked"),
        ("a.csv.bz2", b"", "cannot be unpacked|has no rows"),
        ("a.jsonl", (GOOD * 2 + '{"nums": [1,\n' + GOOD).encode(), "a.jsonl, line 3 is not JSON"),
        ("a.json", (GOOD * 2 + "{'nums': 1}\n").encode(), "a.json, line 3 is not JSON"),
        ("a.json", ("[" + GOOD + "," + GOOD).encode(), "a.json is not JSON: .*line 3"),
        ("a.jsonl", ("[\n" + GOOD + GOOD + "]").encode(), "a.jsonl is not JSON: .*line 3"),
        ("a.jsonl", (GOOD + '{"nums": ' + "1" * 5000 + "}").encode(), "a.jsonl, line 2 is not JSON: Exceeds the limit"),
        ("a.json", b"[" * 200_000, "a.json is not JSON of rows: it is nested too deep"),
        ("a.jsonl", GOOD.encode() + b'{"nums": ' + b"[" * 200_000, "line 2 is nested too deep"),
        ("a.jsonl", (GOOD + "[1, 2]\n").encode(), r"row 1 \(from 0\): a row is an object with nums, target"),
        ("a.jsonl", (GOOD + '{"nums": "1 2", "target": 3.5}').encode(), r"row 1 \(from 0\): 'nums' must be a list"),
        ("a.json", b'{"data": [{"nums": [1, 2, 3], "target": 6}]}', "must hold a list of rows, not a dict"),
        ("a.json", b"17", "must hold a list of rows, not a int"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        ("a.parquet", b"PAR1" + b"x" * 99, "a.parquet cannot be read as parquet"),
        ("a.csv", b"", "a.csv has no rows"),
        ("a.csv", b"\n\n", "a.csv has no rows"),
        ("a.csv", b"nums,target\n", "a.csv has no rows"),
        ("a.csv", b"nums,target,nums\n1 2,3,4\n", "the first line names nums twice"),
        ("a.csv", b",,\n1,2,3\n", "the first line must name the columns"),
        ("a.csv", b"1 2 3,6\n1 2 4,7\n", "a.csv, whose first line must name the columns, has no column nums, target"),
        ("a.csv", b"Nums,Target\n1 2 3,6\n", "has no column nums, target; it has Nums, Target"),
        ("a.csv", b"nums,target\n1,2,3,6\n", "a.csv, line 2 has 4 cells, and the first line names 2 columns"),
        ("a.csv", b'nums,target\n"1\n2",6\n1 2 3\n', "a.csv, line 4 has 1 cells"),
        ("a.csv", b'nums,target\n1 2 3,6\n"1 2 3,6\n', "a.csv, line 3 is no row of a table: unexpected end of data"),
        ("a.csv", b"nums,target\n1 2 3,\n", r"row 0 \(from 0\): 'target' must be an integer"),
        ("a.csv", b"nums,target\n1 2 3,six\n", r"row 0 \(from 0\): 'target' must be an integer"),
        ("a.txt", b"", r"a.txt is not a .parquet, .json, .jsonl, .csv or .tsv"),
        ("a.xlsx", b"PK", r"a.xlsx is not a .parquet, .json, .jsonl, .csv or .tsv"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        countdown.load(split="train", source=str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("card", ["", "[]", '{"split_rule": "problem"}', '{"num_rows": 3, "split_rule": "problem"}'])
def test_a_broken_card_of_a_prepared_folder_is_named(card: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(card)
    with pytest.raises(ValueError, match=r"card.json (cannot be read|does not say).*prepare the data again"):
        countdown.load(split="train", source=str(tmp_path))


def test_a_misspelt_path_is_told_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD)
    with pytest.raises(FileNotFoundError, match=r"no data file .*row.jsonl; did you mean .*/rows.jsonl\?"):
        read_source(str(tmp_path / "row.jsonl"))
    with pytest.raises(FileNotFoundError) as raised:
        read_source(str(tmp_path / "something_else.parquet"))
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_ending_is_known_in_small_and_capital_letters(suffix: str) -> None:
    assert suffix_of(Path(f"a.b{suffix}")) == suffix_of(Path(f"A{suffix.upper()}")) == suffix


def test_a_home_folder_is_spelt_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text(GOOD)
    assert read_source("~/rows.jsonl") == [json.loads(GOOD)]
    writers: dict[str, Callable[[Path], None]] = {"folder": parquet}
    for name, write in writers.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.parquet")
        assert read_source(f"~/{name}", columns=["nums", "target"]) == ROWS
