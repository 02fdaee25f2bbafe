"""The verb `tinyzero prepare`: load and split a data set, show its prompts, check its rewards with reference answers, save it."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tinyzero_trl import storage
from tinyzero_trl.data.overlap import overlaps
from tinyzero_trl.data.rows import CARD
from tinyzero_trl.evaluation import BENCHMARKS, chosen, load
from tinyzero_trl.failures import explained
from tinyzero_trl.models import ModelLocation, load_path, tokens
from tinyzero_trl.rewards import columns_of, for_trl, why_not_a_reward
from tinyzero_trl.task import Task, loaded, prompts, resolve
from tinyzero_trl.tasks import find_task

if TYPE_CHECKING:
    from datasets import Dataset

NUM_SHOWN = 3
"""Number of prompts printed."""
NUM_CHECKED = 100
"""Number of rows whose reference answer is scored."""


def main(argv: Sequence[str] | None = None, *, task: str) -> int:
    """Prepare the data of a shipped task as the command line says; a mistake is one line on stderr and exit code 2."""
    return prepare(find_task(task), argv)


def prepare(task: Task, argv: Sequence[str] | None = None) -> int:
    """Prepare the data of any task as the command line says; returns the exit code."""
    from datasets import disable_progress_bars

    source = inspect.signature(task.load).parameters["source"].default
    parser = argparse.ArgumentParser(
        prog=f"prepare {task.name}", description=f"Prepare {task.name} data: load, split, format, check, save."
    )
    parser.add_argument(
        "--source",
        default=source,
        help=f"hub dataset, file or folder of rows (.jsonl, .json, .csv, .tsv, .parquet; .gz), or 'generated' (default: {source})",
    )
    parser.add_argument("--format", default="base", help=f"{', '.join(task.formats)}, or pkg.module:function")
    parser.add_argument("--output", type=Path, default=Path("outputs") / "data" / task.name, help="folder to write")
    parser.add_argument("--num_train", type=int, help="train rows (default: all; 10,000 where generated)")
    parser.add_argument("--num_test", type=int, help="test rows (default: all; 1,024 where generated)")
    parser.add_argument(
        "--split_rule", default="problem", help="problem (by a hash of the problem), or tinyzero (its own test rows)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that an earlier call made")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="what a recipe's data section says besides: min_level=3",
    )
    if task.wording is not None:
        parser.add_argument(
            "--evaluation",
            "--benchmarks",
            default="",
            metavar="B",
            help=f"{', '.join(BENCHMARKS)}, or NAME=FILE, with commas between: training problems found in them are left out",
        )
    parser.add_argument("--tokenizer", help="folder or hub id: show prompts as this chat template renders them")
    arguments = parser.parse_args(argv)
    disable_progress_bars()
    output: Path = arguments.output
    try:
        refuse_other_folder(output, is_overwritten=arguments.overwrite)
        storage.probe(output)
        is_generated = arguments.source == "generated"
        num_rows = {
            "train": 10_000 if is_generated and arguments.num_train is None else arguments.num_train,
            "test": 1_024 if is_generated and arguments.num_test is None else arguments.num_test,
        }
        data = keywords(task, arguments.data)
        where = {"source": arguments.source, "split_rule": arguments.split_rule, "seed": arguments.seed, **data}
        rows_by_split = {split: loaded(task, split=split, num_rows=num_rows[split], **where) for split in num_rows}
        report: dict[str, Any] = {}
        if task.wording is not None:
            rows_by_split["train"], report = without_evaluations(
                task, rows_by_split, arguments.evaluation, arguments.source
            )
        format_fn = resolve(arguments.format, among=task.formats, kind="format")
        worded = {split: prompts(rows, format_fn) for split, rows in rows_by_split.items()}
        num_checked = check_rewards(task, worded["test"])
        show(worded["test"], arguments.tokenizer)
        card = {"task": task.name, "format": arguments.format, **where, **report, "version": 1}
        save(worded, output, card, is_overwritten=arguments.overwrite)
    except (ValueError, OSError) as error:
        failure = explained(error) if isinstance(error, OSError) else None
        parser.exit(failure.exit_code if failure else 2, f"{parser.prog}: {failure or error}\n")
    counts = ", ".join(f"{len(rows):,} {split}" for split, rows in worded.items())
    print(f"{num_checked} reference answers earn 1.0 and as many wrong ones 0.0. Saved {counts} rows: {output}")
    print(f"Train on them with data.source={output}")
    return 0


def keywords(task: Task, words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as keyword arguments of the task's `load`. Raises: ValueError that lists the keys there are."""
    takes = set(inspect.signature(task.load).parameters) - {"split", "source", "split_rule", "num_rows", "seed"}
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in takes:
            raise ValueError(f"--data {word}: write key=value; there is {', '.join(sorted(takes))}")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--data {word}: {' '.join(str(error).split())}") from error
    return given


def without_evaluations(
    task: Task, rows_by_split: dict[str, Dataset], benchmarks: str, own: str
) -> tuple[Dataset, dict[str, Any]]:
    """The training rows that are in none of `benchmarks`, and the number left out by evaluation; prints both.

    The test split of the data counts as an evaluation too, unless the problems are generated: generated problems are worded
    alike on purpose, and their splits differ by key.
    """
    assert task.wording is not None
    evaluations = {} if own == "generated" else {"test split": rows_by_split["test"].to_list()}
    for one in chosen(benchmarks) if benchmarks else []:
        evaluations[one.name] = load(one, num_rows=None, seed=0)
    train = rows_by_split["train"]
    texts = {name: [task.wording(row) for row in rows] for name, rows in evaluations.items()}
    training = [task.wording(row) for row in train.to_list()]
    found = overlaps(training, texts)
    counts = {name: sum(overlap.evaluation == name for overlap in found) for name in texts}
    for name, count in counts.items():
        print(f"{count} of {len(train)} training problems are among the {len(texts[name])} of {name}, and are left out")
    for overlap in found[:NUM_SHOWN]:
        print(
            f"  train: {training[overlap.index]!r:.160}\n  {overlap.evaluation}: {texts[overlap.evaluation][overlap.problem]!r:.160}"
        )
    if not evaluations:
        print("No evaluation problems to look for: name some with --evaluation")
    dropped = {overlap.index for overlap in found}
    if len(dropped) == len(train):
        raise ValueError("every training problem is an evaluation problem")
    kept = train.select([index for index in range(len(train)) if index not in dropped]) if dropped else train
    return kept, {"evaluation_problems_left_out": counts}


def check_rewards(task: Task, rows: Dataset) -> int:
    """Number of rows checked. In each, the answer of `task.solve` earns 1.0, and that answer with `+ 1` behind it earns 0.0.

    Completions are scored by the same call as in training. Raises: ValueError that names the row.
    """
    if task.solve is None:
        return 0
    reward = task.rewards[task.solved]
    if reason := why_not_a_reward(reward):
        raise ValueError(f"reward {task.solved} {reason}")
    batch = for_trl(reward, name=task.solved)
    sample = rows.select(range(min(NUM_CHECKED, len(rows)))).to_list()
    for index, row in enumerate(sample):
        columns = {column: row[column] for column in columns_of(reward)}
        answer = task.solve(row)
        if answer is None:
            raise ValueError(f"test row {index} has no solution: {columns}")
        for text, expected in ((answer, 1.0), (f"{answer} + 1", 0.0)):
            completion: Any = ("" if row["prefill"] else "<think>") + f" checked </think>\n<answer>{text}</answer>"
            if not isinstance(row["prompt"], str):
                completion = [{"role": "assistant", "content": completion}]
            given: dict[str, Any] = {key: [value] for key, value in row.items() if key != "prompt"}
            (earned,) = batch([row["prompt"]], [completion], **given)
            if earned != expected:
                raise ValueError(f"test row {index}: the answer {text} earned {earned}, not {expected}: {columns}")
    return len(sample)


def show(rows: Dataset, tokenizer_name: str | None) -> None:
    """Print the first prompts; chat messages as the chat template of `tokenizer_name` renders them, or else as they are."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    first = [rows[index]["prompt"] for index in range(min(NUM_SHOWN, len(rows)))]
    console = Console()
    for number, text in enumerate(rendered(first, tokenizer_name), start=1):
        console.print(Panel(Text(text), title=f"prompt {number}"))


def rendered(given: list[Any], tokenizer_name: str | None) -> list[str]:
    """Each prompt as one text."""
    if given and isinstance(given[0], str):
        return given
    if tokenizer_name is None:
        return ["\n".join(f"[{message['role']}] {message['content']}" for message in prompt) for prompt in given]
    tokenizer = tokens.tokenizer_of(ModelLocation("base", load_path(tokenizer_name)), typed="--tokenizer ")
    fitted = tokens.fitted(given, tokenizer, name=tokenizer_name)
    tokens.check_prompts(fitted, tokenizer, name=tokenizer_name, format_name="of this task")
    return [tokens.rendered(prompt, tokenizer) for prompt in fitted]


def refuse_other_folder(folder: Path, *, is_overwritten: bool) -> None:
    """Refuse a folder that `save` may not replace. Raises: FileExistsError."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CARD).is_file():
        raise FileExistsError(f"{folder} exists and was not made by a prepare script; choose another --output")
    if not is_overwritten:
        raise FileExistsError(f"{folder} holds prepared data already; replace it with --overwrite")


def save(rows_by_split: dict[str, Dataset], folder: Path, card: dict[str, Any], *, is_overwritten: bool) -> None:
    """Write `<split>.parquet` and the card to `folder`, which appears whole or not at all."""
    import pyarrow.parquet as pq

    refuse_other_folder(folder, is_overwritten=is_overwritten)
    with storage.replacing_folder(folder) as unfinished:
        for split, rows in rows_by_split.items():
            pq.write_table(rows.with_format("arrow")[:], unfinished / f"{split}.parquet")
        digests = {path.stem: storage.sha256_of(path) for path in unfinished.glob("*.parquet")}
        counts = {split: len(rows) for split, rows in rows_by_split.items()}
        text = json.dumps({**card, "num_rows": counts, "fingerprint": digests}, indent=2)
        (unfinished / CARD).write_text(text + "\n", encoding="utf-8")
