"""A model and held-out problems -> an evaluation folder; two evaluations -> the paired gain."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyzero_trl import storage
from tinyzero_trl.config import engine_of_evaluation
from tinyzero_trl.evaluation import audit, benchmarks, contamination, scores, unfinished
from tinyzero_trl.evaluation.arguments import parser_of
from tinyzero_trl.evaluation.completions import Draw, Loading, checked_model, opened
from tinyzero_trl.evaluation.plan import Settings, make_plan, refuse_changed
from tinyzero_trl.evaluation.scores import Sample
from tinyzero_trl.evaluation.tables import show, show_comparison
from tinyzero_trl.evaluation.work import Work, completed, device, rows_of, work_of
from tinyzero_trl.failures import Failure, VerifierFailure, explained
from tinyzero_trl.models import identity_of, weights_of
from tinyzero_trl.redaction import secrets_in_environment, without_secrets
from tinyzero_trl.rewards import verdict_of
from tinyzero_trl.storage import locked
from tinyzero_trl.task import Row, Task

MISTAKE, OUT_OF_MEMORY, DISK, INTERRUPTED = 2, 5, 8, 130
"""Exit codes; the same as those of training (`failures.py`)."""
PACKAGES = ("tinyzero-trl", "torch", "transformers", "trl", "peft", "datasets")


def main(argv: Sequence[str] | None = None, task: str | None = None) -> int:
    """`evaluate_<task>.py` and `tinyzero evaluate`; returns the exit code."""
    arguments = parser_of(task).parse_args(argv)
    try:
        if arguments.compare:
            show_comparison(*arguments.compare)
        elif arguments.audit:
            audit.show(arguments.audit)
        elif arguments.model_path is None:
            raise ValueError("give --model_path, or two evaluations to --compare, or one to --audit")
        elif arguments.contamination:
            contamination.show(_probe(_settings(arguments, task)))
        else:
            folders = evaluate_all(_settings(arguments, task))
            show(folders)
            _refuse_undecided(folders)
    except (ValueError, FileNotFoundError) as error:
        return _failed(str(error), MISTAKE)
    except OSError as error:
        if failure_of_disk := explained(error):
            return _failed(str(failure_of_disk), failure_of_disk.exit_code)
        return _failed(f"nothing was written to {error.filename or 'disk'}: {error.strerror or error}", DISK)
    except Failure as failure:
        return _failed(str(failure), failure.exit_code)
    except MemoryError:
        return _failed("out of memory: lower --batch_size or --max_new_tokens", OUT_OF_MEMORY)
    except KeyboardInterrupt:
        return _failed("stopped; what was answered is kept, and the same command goes on from there", INTERRUPTED)
    return 0


def _settings(arguments: argparse.Namespace, task: str | None) -> list[Settings]:
    """One for each benchmark, or the one for the task's own problems. Raises: ValueError or FileNotFoundError."""
    others = ("compare", "audit", "benchmarks", "columns", "contamination")
    settings = Settings(**{"task": task, **{name: v for name, v in vars(arguments).items() if name not in others}})
    if arguments.benchmarks is None:
        return [settings]
    if settings.source is not None:
        raise ValueError("--source is of the task's own problems; a benchmark's file is --benchmarks NAME=FILE")
    return [replace(settings, benchmark=one) for one in benchmarks.chosen(arguments.benchmarks, arguments.columns)]


def _probe(asked: Sequence[Settings]) -> Path:
    """contamination.json of these benchmarks. Raises: as `contamination.probe`."""
    first, chosen = asked[0], [settings.benchmark for settings in asked if settings.benchmark]
    if not chosen:
        raise ValueError("--contamination is about the texts of --benchmarks; name one")
    engine = engine_of_evaluation(first.engine)
    folder = make_plan(replace(first, overwrite=True)).folder.parent
    return contamination.probe(first.model_path, chosen, n=first.n, seed=first.seed, engine=engine, output=folder)


def evaluate(settings: Settings) -> Path:
    """The evaluation folder, written; one that was stopped goes on where it was.

    Raises: ValueError or FileNotFoundError with one line, before weights are read.
    """
    return evaluate_all([settings])[0]


def evaluate_all(asked: Sequence[Settings]) -> list[Path]:
    """The folder of each evaluation of one model, which is loaded once; what is complete is left as it is.

    Raises: as `evaluate`, before anything is written.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    engine = engine_of_evaluation(asked[0].engine)
    asked = [replace(settings, engine=engine) for settings in asked]
    plans = [make_plan(settings) for settings in asked]
    storage.probe(plans[0].folder)
    problems = [rows_of(plan, settings) for plan, settings in zip(plans, asked, strict=True)]
    model = checked_model(plans[0].location)
    works = [work_of(*parts, model) for parts in zip(plans, asked, problems, strict=True)]
    for work in works:
        _refuse_others_samples(work)
    weights = weights_of(plans[0].location)
    with ExitStack() as stack:
        draw: Draw | None = None
        model_id: dict[str, Any] = {}
        for work in works:
            identity = work.identity | {"weights": weights}
            if not work.settings.overwrite and _is_complete(work.plan.folder, identity):
                console.print(f"{work.plan.folder} is complete; --overwrite makes it anew")
                _tidy(work.plan.folder)
                continue
            with locked(work.plan.folder):
                known = unfinished.begin(work.plan.folder, identity, overwrite=work.settings.overwrite)
                console.print(work.said(num_known=len(known)))
                model_id = model_id or identity_of(work.plan.location)
                if draw is None and len(known) < work.num_samples:
                    loading = Loading(
                        model,
                        max_length=max(one.max_length for one in works),
                        dtype=work.plan.dtype,
                        batch_size=work.settings.batch_size,
                        stop=work.plan.stop,
                    )
                    draw = stack.enter_context(opened(engine, loading))
                is_whole = not known  # the seconds are those of all its tokens
                completions, seconds = completed(work, known, draw, console)
                _write(work, completions, seconds, identity | model_id, is_whole=is_whole)
                unfinished.clear(work.plan.folder)
    return [plan.folder for plan in plans]


def _write(
    work: Work, completions: Sequence[dict[str, Any]], seconds: float, identity: dict[str, Any], *, is_whole: bool
) -> None:
    """Verify, count and write."""
    plan, settings = work.plan, work.settings
    rows = [row for row in work.rows for _ in range(plan.k)]
    samples = [
        verified(row, plan.task, problem=place // plan.k, sample=place % plan.k, **completion)
        for place, (row, completion) in enumerate(zip(rows, completions, strict=True))
    ]
    num_tokens = sum(sample.num_completion_tokens for sample in samples)
    summary = {
        "schema": 1,
        "name": (settings.name or plan.location.name),
        **identity,
        "num_problems": len(work.rows),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(num_tokens / max(seconds, 1e-9), 1) if is_whole else None,
        "num_completion_tokens": num_tokens,
        "batch_size": settings.batch_size,
        "device": device(),
        "dtype": "float32" if device() == "cpu" else plan.dtype,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "metrics": {name: e.as_dict() for name, e in scores.metrics(samples, task=plan.task).items()},
    }
    scores.write(plan.folder, summary=summary, samples=samples)


def _refuse_others_samples(work: Work) -> None:
    """Raises: ValueError where the folder holds samples of another length, engine or wording, which would be lost."""
    folder = work.plan.folder
    if work.settings.overwrite or not (folder / scores.SUMMARY).is_file():
        return
    before = scores.read_summary(folder)
    names = [name for name in ("max_new_tokens", "engine", "prompts_sha256") if name in before]
    refuse_changed(folder, before, work.identity, names=names)


def _refuse_undecided(folders: Sequence[Path]) -> None:
    """Raises: VerifierFailure where more than `scores.MAX_UNDECIDED` of an evaluation's samples got no verdict."""
    shares = {folder: scores.undecided(scores.read_summary(folder)) for folder in folders}
    if failed := [f"{share:.1%} in {folder}" for folder, share in shares.items() if share > scores.MAX_UNDECIDED]:
        raise VerifierFailure(
            f"the verifier gave up on {', '.join(failed)} (bar: {scores.MAX_UNDECIDED:.1%}), so the figures are no measure of the "
            "model; see outcome `undecided` in samples.parquet, and once the cause is gone run it again with --overwrite"
        )


def _tidy(folder: Path) -> None:
    """Remove what a process left that was killed after its summary was written."""
    if (folder / unfinished.FOLDER).exists() or (folder / "run.lock").exists():
        with locked(folder):
            unfinished.clear(folder)


def _is_complete(folder: Path, identity: dict[str, Any]) -> bool:
    """Whether `folder` holds exactly this evaluation."""
    if not (folder / scores.SUMMARY).is_file() or not (folder / scores.SAMPLES).is_file():
        return False
    before = {"stop": [], **scores.read_summary(folder)}
    return all(before.get(name) == value for name, value in json.loads(json.dumps(identity)).items())


def verified(
    row: Row, task: Task, *, problem: int, sample: int, completion: str, num_completion_tokens: int, is_truncated: bool
) -> Sample:
    """The sample with the task's verdict: the same call that training makes."""
    verdict = verdict_of(task, row["prefill"] + completion, row=row, is_truncated=is_truncated)
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


def _failed(message: str, code: int) -> int:
    print(f"evaluate: {without_secrets(message, secrets_in_environment())}", file=sys.stderr)
    return code
