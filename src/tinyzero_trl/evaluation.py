"""A model and held-out problems -> an evaluation folder; two evaluations -> the paired gain."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tinyzero_trl import scores
from tinyzero_trl.answering import answer, prompt_ids_of, room, tokenizer_of
from tinyzero_trl.engine import ENGINES, check_engine_of_evaluation
from tinyzero_trl.evaluation_plan import DEFAULT_NUM_PROBLEMS, Plan, Settings, make_plan, request
from tinyzero_trl.failures import Failure
from tinyzero_trl.model_location import ModelLocation
from tinyzero_trl.scores import Sample
from tinyzero_trl.statistics import Comparison, Estimate
from tinyzero_trl.task import Row, Task, prompts, resolve
from tinyzero_trl.tasks import TASKS

MISTAKE, OUT_OF_MEMORY, DISK, INTERRUPTED = 2, 5, 8, 130
"""Exit codes; the same as those of training (`failures.py`)."""
PACKAGES = ("tinyzero-trl", "torch", "transformers", "trl", "peft", "datasets")


def main(argv: Sequence[str] | None = None, task: str | None = None) -> int:
    """`evaluate_<task>.py` and `tinyzero evaluate`; returns the exit code."""
    arguments = _parser(task).parse_args(argv)
    try:
        if arguments.compare:
            show_comparison(*arguments.compare)
        elif arguments.model_path is None:
            raise ValueError("give --model_path, or two evaluations to --compare")
        else:
            fields = {name: value for name, value in vars(arguments).items() if name != "compare"}
            show(evaluate(Settings(**{"task": task, **fields})))
    except (ValueError, FileNotFoundError) as error:
        return _failed(str(error), MISTAKE)
    except OSError as error:
        return _failed(f"nothing was written to {error.filename or 'disk'}: {error.strerror or error}", DISK)
    except Failure as failure:
        return _failed(str(failure), failure.exit_code)
    except MemoryError:
        return _failed("out of memory: lower --batch_size or --max_new_tokens", OUT_OF_MEMORY)
    except KeyboardInterrupt:
        return _failed("stopped; nothing was written", INTERRUPTED)
    return 0


def evaluate(settings: Settings) -> Path:
    """The evaluation folder, written.

    Raises: ValueError or FileNotFoundError with one line, before weights are read.
    """
    from rich.console import Console

    console = Console()
    check_engine_of_evaluation(settings.engine)
    plan = make_plan(settings)
    rows = _rows(plan, settings)
    tokenizer = tokenizer_of(plan.location)
    prompt_ids = prompt_ids_of(tokenizer, rows, plan)
    max_new_tokens = room(plan, max(map(len, prompt_ids)))
    completions, seconds = answer(plan, settings, tokenizer, prompt_ids, max_new_tokens, console)
    samples = [
        verified(row, plan.task, problem=index // settings.k, sample=index % settings.k, **completion)
        for index, (row, completion) in enumerate(
            zip([row for row in rows for _ in range(settings.k)], completions, strict=True)
        )
    ]
    metrics = scores.metrics(samples, task=plan.task)
    num_tokens = sum(sample.num_completion_tokens for sample in samples)
    summary = {
        "schema": 1,
        "name": plan.folder.name,
        **request(plan, settings),
        "engine": settings.engine,
        "max_new_tokens": max_new_tokens,
        "num_problems": len(rows),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(num_tokens / max(seconds, 1e-9), 1),
        "num_completion_tokens": num_tokens,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "model_sha256": _manifest_sha256(plan.location),
        "prompts_sha256": hashlib.sha256("\0".join(str(row["prompt"]) for row in rows).encode()).hexdigest(),
        "metrics": {name: estimate.as_dict() for name, estimate in metrics.items()},
    }
    scores.write(plan.folder, summary=summary, samples=samples)
    return plan.folder


def verified(
    row: Row, task: Task, *, problem: int, sample: int, completion: str, num_completion_tokens: int, is_truncated: bool
) -> Sample:
    """The sample with the task's verdict: the same call that training makes."""
    columns = {name: row[name] for name in task.columns}
    verdict = task.verify(row["prefill"] + completion, is_truncated=is_truncated, **columns)
    return Sample(
        problem=problem,
        sample=sample,
        row={name: value for name, value in row.items() if name not in ("prompt", "prefill")},
        prompt=row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"]),
        prefill=row["prefill"],
        completion=completion,
        num_completion_tokens=num_completion_tokens,
        is_truncated=is_truncated,
        outcome=str(verdict.outcome),
        is_correct=verdict.outcome == "correct",
        answer=verdict.answer,
    )


def show_comparison(base: Path, trained: Path) -> Comparison:
    """Print the paired gain of the second evaluation over the first."""
    from rich.console import Console

    summaries = [scores.read_summary(base), scores.read_summary(trained)]
    try:
        comparison = scores.compare(scores.read_samples(base), scores.read_samples(trained))
    except ValueError as error:
        raise ValueError(f"{base} and {trained} are not of the same problems: {error}") from None
    console = Console()
    for summary in summaries:
        estimate = Estimate(**summary["metrics"]["pass@1"])
        console.print(
            f"{summary['name']:>16}  pass@1 {_percent(estimate)}  temperature {summary['temperature']:g}",
            highlight=False,
        )
    console.print(
        f"[bold]{'gain':>16}  {_percent(comparison.gain, signed=True)}[/] points on {comparison.gain.n} problems: "
        f"{comparison.num_better} better, {comparison.num_worse} worse, McNemar's exact p = {shown_p(comparison.p)}",
        highlight=False,
        soft_wrap=True,
    )
    return comparison


def shown_p(p: float) -> str:
    """p in three digits; beyond 1e-12 the number says nothing more."""
    return "< 1e-12" if p < 1e-12 else f"{p:.3g}"


def _rows(plan: Plan, settings: Settings) -> list[Row]:
    """The problems, worded: the same ones in the same order for the same source, n and seed."""
    import datasets

    datasets.disable_progress_bars()
    raw = plan.task.load(split=settings.split, num_rows=settings.n, seed=settings.seed, **plan.data)
    worded = prompts(raw, resolve(plan.format, among=plan.task.formats, kind="format"))
    rows: list[Row] = worded.to_list()
    return rows


def _failed(message: str, code: int) -> int:
    print(f"evaluate: {message}", file=sys.stderr)
    return code


def _manifest_sha256(location: ModelLocation) -> str | None:
    """Identifies the weights, where their folder is sealed."""
    file = Path(location.shown) / "MANIFEST.json"
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def show(folder: Path) -> None:
    """Print the table of an evaluation, and where it is."""
    from rich.console import Console
    from rich.table import Table

    console, summary = Console(), scores.read_summary(folder)
    table = Table(
        title=f"{summary['name']}: {summary['num_problems']} problems, temperature {summary['temperature']:g}"
    )
    for column in ("metric", "value", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "metric" else "right", no_wrap=True)
    for name, values in summary["metrics"].items():
        e = Estimate(**values)
        if is_share(name):
            cells = (f"{e.value:.1%}", f"{e.low:.1%} to {e.high:.1%}")
        else:
            cells = (f"{e.value:.1f}", f"{e.low:.1f} to {e.high:.1f}")
        table.add_row(name, *cells, str(e.n))
    console.print(table)
    console.print(f"Written to {folder}", soft_wrap=True, highlight=False)


def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1 by its name."""
    return metric.startswith(("pass@", "maj@", "outcome/")) or metric.endswith("/share")


def _percent(e: Estimate, *, signed: bool = False) -> str:
    value = f"{100 * e.value:+.1f}" if signed else f"{100 * e.value:.1f} %"
    return f"{value} [{100 * e.low:.1f}, {100 * e.high:.1f}]"


def _parser(task: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinyzero evaluate" if task is None else f"evaluate_{task}.py",
        description="Answer held-out problems with a model, or compare two evaluations of the same problems.",
        epilog="Format, source, temperature and length are read from the run.yaml of the run that --model_path, or else "
        "--output, names. Example: --model_path outputs/countdown/RUN --n 2048",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model_path", metavar="P", help="run folder, checkpoint, model folder, LoRA adapter, `tiny` or hub id")
    if task is None:
        add("--task", help="needed where the model comes from no run: " + ", ".join(TASKS))
    add("--source", metavar="S", help="hub id, .parquet, .json or .jsonl file, prepared folder, or `generated`")
    add("--split", choices=("test", "validation"), default="test")
    add("--n", type=int, default=DEFAULT_NUM_PROBLEMS, help="problems (default: %(default)s)")
    add("--k", type=int, default=1, help="samples of each problem; more than 1 adds pass@k and maj@k")
    add("--temperature", type=float, metavar="T", help="0 is greedy (default: the run's, or 1)")
    add("--max_new_tokens", type=int, help="tokens of a response (default: the run's, or 1024)")
    add("--seed", type=int, default=0, help="draws problems and samples (default: 0)")
    add("--batch_size", type=int, help="sequences generated at once")
    add(
        "--engine",
        choices=ENGINES,
        default=ENGINES[0],
        help="who generates: the model in transformers, or vLLM as a server of its own or in this process (default: %(default)s)",
    )
    add("--format", help="wording of the prompt (default: the run's, or base)")
    add(
        "--output",
        type=Path,
        metavar="D",
        help="folder that gets evaluation/<name>/ (default: the run folder); a run folder also lends its settings",
    )
    add("--name", help="name of the evaluation (default: base, final or checkpoint-N)")
    add("--overwrite", action="store_true", help="replace an evaluation of this name made with other settings")
    add("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two evaluation folders: the paired gain of B over A")
    return parser
