"""A data set made ready: loaded, split, shown as the model will see it, checked with reference answers, saved whole."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tinyzero_trl import hub, storage
from tinyzero_trl.data.overlap import overlaps
from tinyzero_trl.data.rows import CARD
from tinyzero_trl.evaluation import BENCHMARKS, chosen, load
from tinyzero_trl.failures import explained
from tinyzero_trl.models import tokens
from tinyzero_trl.rewards import columns_of, for_trl, reward_fault
from tinyzero_trl.task import Task, loaded, prompts, raised, resolve
from tinyzero_trl.tasks import find_task

if TYPE_CHECKING:
    from datasets import Dataset

NUM_SHOWN = 3
"""Prompts printed."""
NUM_CHECKED = 100
"""Rows whose reference answer is scored."""


def main(argv: Sequence[str] | None = None, *, task: str) -> int:
    """What the prepare scripts do with a command line; a mistake is one line on stderr and exit code 2."""
    return prepare(find_task(task), argv)


def prepare(task: Task, argv: Sequence[str] | None = None) -> int:
    """The same for any task, also one that is not shipped."""
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
    parser.add_argument("--split_rule", default="problem", help="problem (disjoint), or tinyzero (leaks)")
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
    """`key=value` words as keyword arguments of the task's `load`. Raises: ValueError that lists what there is."""
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
    """The training rows that are in none of `benchmarks`, and how many were, by evaluation; says so in print.

    The test split of the data is one of the evaluations too, unless the problems are generated: there, like wording is
    meant, and splits differ by their keys.
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
    """How many rows were checked: on each, `task.solve`'s answer earns 1.0, and with `+ 1` behind it nothing.

    Raises: ValueError that names the row.
    """
    if task.solve is None:
        return 0
    reward = task.rewards[task.solved]
    if fault := reward_fault(reward):
        raise ValueError(f"reward {task.solved} {fault}")
    batch = for_trl(reward, name=task.solved)

    def score(response: str, row: dict[str, Any]) -> float | None:
        completion: Any = response.removeprefix(row["prefill"] or "")
        if not isinstance(row["prompt"], str):
            completion = [{"role": "assistant", "content": completion}]
        columns: dict[str, Any] = {key: [value] for key, value in row.items() if key != "prompt"}
        return batch([row["prompt"]], [completion], **columns)[0]

    sample = rows.select(range(min(NUM_CHECKED, len(rows)))).to_list()
    for index, row in enumerate(sample):
        columns = {column: row[column] for column in columns_of(reward)}
        answer = task.solve(row)
        if answer is None:
            raise ValueError(f"test row {index} has no solution: {columns}")
        for text, expected in ((answer, 1.0), (f"{answer} + 1", 0.0)):
            response = (row["prefill"] or "<think>") + f" checked </think>\n<answer>{text}</answer>"
            earned = score(response, row)
            if earned != expected:
                raise ValueError(f"test row {index}: the answer {text} earned {earned}, not {expected}: {columns}")
    return len(sample)


def show(rows: Dataset, tokenizer_name: str | None) -> None:
    """Prints the first prompts; chat messages as `tokenizer_name` renders them, or else as they are."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    console = Console()
    for index in range(min(NUM_SHOWN, len(rows))):
        console.print(Panel(Text(rendered(rows[index]["prompt"], tokenizer_name)), title=f"prompt {index + 1}"))


def rendered(prompt: str | list[dict[str, str]], tokenizer_name: str | None) -> str:
    """The prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer_name is None:
        return "\n".join(f"[{message['role']}] {message['content']}" for message in prompt)
    from transformers import AutoTokenizer

    is_open = prompt[-1]["role"] == "assistant"
    if not Path(tokenizer_name).is_dir():
        hub.reached()
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    except Exception as error:  # transformers, tokenizers and sentencepiece each have their own
        why = raised(error) if Path(tokenizer_name).is_dir() else hub.missing_model(tokenizer_name)
        raise ValueError(f"--tokenizer {tokenizer_name}: {why}") from error
    (taken,) = tokens.fitted([prompt], tokenizer, name=tokenizer_name)
    tokens.check_prompts([taken], tokenizer, name=tokenizer_name, format_name="of this task")
    return str(
        tokenizer.apply_chat_template(
            taken, tokenize=False, continue_final_message=is_open, add_generation_prompt=not is_open
        )
    )


def refuse_other_folder(folder: Path, *, is_overwritten: bool) -> None:
    """Raises FileExistsError where saving to `folder` would destroy something that was not given up."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / CARD).is_file():
        raise FileExistsError(f"{folder} exists and was not made by a prepare script; choose another --output")
    if not is_overwritten:
        raise FileExistsError(f"{folder} holds prepared data already; replace it with --overwrite")


def save(rows_by_split: dict[str, Dataset], folder: Path, card: dict[str, Any], *, is_overwritten: bool) -> None:
    """Writes `<split>.parquet` and the card to `folder`, which appears whole or not at all."""
    import pyarrow.parquet as pq

    refuse_other_folder(folder, is_overwritten=is_overwritten)
    with storage.replacing_folder(folder) as unfinished:
        for split, rows in rows_by_split.items():
            pq.write_table(rows.with_format("arrow")[:], unfinished / f"{split}.parquet")
        digests = {
            path.stem: blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in unfinished.glob("*.parquet")
        }
        counts = {split: len(rows) for split, rows in rows_by_split.items()}
        text = json.dumps({**card, "num_rows": counts, "fingerprint": digests}, indent=2)
        (unfinished / CARD).write_text(text + "\n", encoding="utf-8")
