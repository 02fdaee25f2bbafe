"""The mathematics benchmarks that papers quote: source, columns and usual settings of each, and their rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl.data import READABLE, SUFFIXES, read_source, suffix_of
from tinyzero_trl.task import Row
from tinyzero_trl.tasks.math.data import bare, level_of

PROBLEM_COLUMNS = ("problem", "question", "Problem", "Question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "Answer", "expected_answer", "gold")
"""Usual names of the two columns; the first one that exists is used, unless a person names another."""
FEW_PROBLEMS = 100
"""Number of problems below which one sample of each tells little: AIME scatters by 5 to 15 points between seeds (arXiv 2504.07086)."""
ENOUGH_SAMPLES = 16
"""Samples of each problem that are enough for so few problems."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, with its usual settings.

    Source of the settings: temperature 0.6, top-p 0.95 and 32,768 tokens as in DeepSeek-R1 (arXiv 2501.12948, sec. 3) and open-r1.
    Samples of a problem: 64 for AIME and 4 for MATH-500 as in open-r1, 64 for AMC, 1 for GSM8K's 1,319 problems, 4 for the others.
    """

    name: str
    """Name, as in --benchmarks."""
    hub: str
    """Id of the hub dataset; `id:config` if it has several configs."""
    split: str = "test"
    """Split of the hub dataset."""
    problem: str | None = None
    """Column of the problem; None is the first of PROBLEM_COLUMNS."""
    answer: str | None = None
    """Column of the answer; None is the first of ANSWER_COLUMNS."""
    level: str | None = None
    """Column of the difficulty; accuracy is also shown for each of its values."""
    k: int = 4
    """Samples of a problem, unless decoding is greedy."""
    temperature: float = 0.6
    """Sampling temperature; 0 is greedy."""
    top_p: float = 0.95
    """Probability mass that is sampled from."""
    max_new_tokens: int = 32_768
    """Most tokens of a response; fewer if the model has no room."""


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("math500", "HuggingFaceH4/MATH-500", problem="problem", answer="answer", level="level"),
        Benchmark("aime24", "HuggingFaceH4/aime_2024", split="train", problem="problem", answer="answer", k=64),
        Benchmark("aime25", "math-ai/aime25", problem="problem", answer="answer", k=64),
        Benchmark("amc23", "math-ai/amc23", problem="question", answer="answer", k=64),
        Benchmark("minerva", "math-ai/minervamath", problem="question", answer="answer"),
        Benchmark("olympiadbench", "math-ai/olympiadbench", problem="question", answer="final_answer"),
        Benchmark("gsm8k", "openai/gsm8k:main", problem="question", answer="answer", k=1),
    )
}


@dataclass(frozen=True)
class Chosen:
    """A benchmark, and the source that it is read from."""

    benchmark: Benchmark
    source: str
    """Hub id, or path of the file."""
    is_local: bool
    """True if the source is a file."""

    @property
    def name(self) -> str:
        """Name of the benchmark, and of its evaluation's folder."""
        return self.benchmark.name


def chosen(words: str, columns: Sequence[str] = ()) -> list[Chosen]:
    """The benchmarks in the words of `--benchmarks`: names, or `name=file-or-folder` with any name, separated by commas.

    columns: `problem=NAME`, `answer=NAME` or `level=NAME`, with `BENCHMARK.` in front for one benchmark only.
    Raises: ValueError or FileNotFoundError of one line.
    """
    found: list[Chosen] = []
    for word in filter(None, (word.strip() for word in words.split(","))):
        name, equals, place = word.partition("=")
        if name in (one.name for one in found):
            raise ValueError(f"--benchmarks names {name} twice")
        if not name or "/" in name or name in (".", "..") or (equals and not place):
            raise ValueError(f"--benchmarks {word}: write NAME, or NAME=FILE")
        if not place and name not in BENCHMARKS:
            raise ValueError(
                f"--benchmarks: there is no {name!r}; there is {', '.join(BENCHMARKS)}, or one of your own as NAME=FILE"
            )
        benchmark = BENCHMARKS.get(name) or Benchmark(name, hub="")
        if place:
            # A file's columns may have other names than the hub's.
            benchmark = Benchmark(name, hub=benchmark.hub, level=benchmark.level, k=benchmark.k)
        own = _columns_of(name, columns)
        benchmark = Benchmark(**{**vars(benchmark), **own})
        found.append(Chosen(benchmark, str(_file(Path(place), name)) if place else benchmark.hub, bool(place)))
    if not found:
        raise ValueError(f"--benchmarks is empty; there is {', '.join(BENCHMARKS)}")
    names = {one.name for one in found}
    for word in columns:
        of, dot, _ = word.partition("=")[0].partition(".")
        if dot and of not in names:
            raise ValueError(f"--columns {word}: --benchmarks names no {of!r}")
    return found


def load(one: Chosen, *, num_rows: int | None, seed: int) -> list[Row]:
    """Rows {"problem", "answer", "source", "level"} in the benchmark's order, or `num_rows` of them drawn with `seed`.

    Raises: ValueError with one line that names the benchmark and what is wrong with it.
    """
    raw = _read(one)
    if not raw:
        raise ValueError(f"{one.name}: {one.source} has no rows")
    benchmark = one.benchmark
    problem = _column(raw[0], benchmark.problem, PROBLEM_COLUMNS, one)
    answer = _column(raw[0], benchmark.answer, ANSWER_COLUMNS, one)
    rows = [
        {
            "problem": _text(row.get(problem), problem, index, one),
            "answer": bare(_text(row.get(answer), answer, index, one)),
            "source": one.name,
            "level": level_of(row.get(benchmark.level)) if benchmark.level else "",
        }
        for index, row in enumerate(raw)
    ]
    if num_rows is None or num_rows == len(rows):
        return rows
    if num_rows > len(rows):
        raise ValueError(f"--n {num_rows}: {one.name} has {len(rows)} problems")
    return random.Random(f"tinyzero {seed}").sample(rows, num_rows)


def warning(num_problems: int, k: int) -> str | None:
    """A warning of too few samples; None if they are enough."""
    if num_problems < FEW_PROBLEMS and k < ENOUGH_SAMPLES:
        return f"not enough samples: {num_problems} problems with --k {k}; with fewer than {FEW_PROBLEMS}, take --k {ENOUGH_SAMPLES} or more"
    return None


def _columns_of(name: str, columns: Sequence[str]) -> dict[str, str]:
    found = {}
    for word in columns:
        key, equals, column = word.partition("=")
        of, dot, role = key.rpartition(".")
        if not equals or not column or role not in ("problem", "answer", "level"):
            raise ValueError(f"--columns {word}: write [BENCHMARK.]problem=NAME, answer=NAME or level=NAME")
        if not dot or of == name:
            found[role] = column
    return found


def _file(place: Path, name: str) -> Path:
    """The file `place`, or the file `<name>.*`, else `test.*`, in the folder `place`. Raises: FileNotFoundError."""
    place = place.expanduser()
    if place.is_file():
        return place
    files = [(suffix, path) for path in place.glob("*") if (suffix := suffix_of(path)) and path.is_file()]
    files.sort(key=lambda file: (SUFFIXES.index(file[0]), file[1]))
    for stem in (name, "test"):
        for suffix, path in files:
            if path.name.lower() == f"{stem.lower()}{suffix}":
                return path
    what = f"has neither {name} nor test as a {READABLE} file" if place.is_dir() else "is not there"
    raise FileNotFoundError(f"--benchmarks {name}={place}: {place.absolute()} {what}")


def _read(one: Chosen) -> list[Row]:
    path, _, config = (one.source, "", "") if one.is_local else one.source.partition(":")
    offline = f"give a file: --benchmarks {one.name}=FILE"
    try:
        rows = read_source(path, config=config or None, split=one.benchmark.split, offline=offline)
    except ValueError as error:
        raise ValueError(f"{one.name}: {path} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{one.name}: {path} must hold rows, each an object")
    return rows


def _column(row: Mapping[str, Any], told: str | None, known: Sequence[str], one: Chosen) -> str:
    for name in [told] if told else known:
        if name in row:
            return name
    raise ValueError(
        f"{one.name}: {one.source} has no column {told or ' or '.join(known[:2])}; it has {', '.join(row)}. "
        "Name it with --columns"
    )


def _text(value: Any, column: str, index: int, one: Chosen) -> str:
    """A cell as text; a list of answers becomes one text, with commas between them."""
    if isinstance(value, (list, tuple)) and value:
        return ", ".join(bare(str(part)) for part in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or not str(value).strip() or isinstance(value, (list, tuple, dict)):
        raise ValueError(f"{one.name}: {one.source}, row {index} (from 0) has no {column!r}")
    return str(value)
