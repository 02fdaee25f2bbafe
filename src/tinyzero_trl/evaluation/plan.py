"""The settings of an evaluation -> a plan in which every setting has a value, checked as far as small files allow."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl.config import why_not_a_folder_name
from tinyzero_trl.evaluation import scores
from tinyzero_trl.evaluation.benchmarks import Chosen
from tinyzero_trl.models import ModelLocation, check_stop, locate, read_record
from tinyzero_trl.redaction import redacted
from tinyzero_trl.storage import trust
from tinyzero_trl.task import Task, resolve
from tinyzero_trl.tasks import TASKS, find_task

DEFAULT_NUM_PROBLEMS = 1024
"""Number of problems that gives an interval of about +-3 points."""
MANY = 1_000_000
"""Largest number of problems, samples, tokens or sequences that is not taken for a typing error."""
DEFAULT_MAX_NEW_TOKENS = 1024
"""Most tokens of a response, if neither a person nor a run says."""
DATA_OF_RUN = ("num_train_rows", "num_eval_rows", "seed", "split", "num_rows")
"""Keys of a run's `data` that concern training only; the others shape the problems, so evaluation uses them too."""


@dataclass(frozen=True)
class Settings:
    """The settings a person gave. None means the run's own value, or without a run the default named here."""

    model_path: str
    """The model: a run folder, checkpoint, model folder, LoRA adapter, `tiny`, `tiny-search` or hub id."""
    task: str | None = None
    """Name of the task, or path/file.py:TASK."""
    format: str | None = None
    """Format of the task (default: base)."""
    source: str | None = None
    """Source of the rows (default: the task's own)."""
    split: str = "test"
    """Split of the rows: test or validation."""
    split_rule: str | None = None
    """Rule that splits the rows: problem, or tinyzero (default: the task's own, problem)."""
    benchmark: Chosen | None = None
    """Benchmark whose problems replace the task's own.

    Its usual settings are then the defaults, instead of the run's.
    """
    n: int | None = None
    """Number of problems (default: 1,024; all of a benchmark)."""
    k: int | None = None
    """Samples of each problem (default: 1)."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy (default: 1)."""
    top_p: float | None = None
    """Probability mass that is sampled from, the likeliest tokens first (default: 1)."""
    stop: Sequence[str] | None = None
    """Strings that end a response (default: none)."""
    max_new_tokens: int | None = None
    """Most tokens of a response (default: 1,024, or fewer if the model has no room)."""
    seed: int = 0
    """Seed of the choice of problems and of the samples."""
    batch_size: int | None = None
    """Sequences generated at once (default: the sampler's choice)."""
    engine: str | None = None
    """Engine that generates: transformers, server (vLLM in processes of its own) or colocate (vLLM in this process);
    None is the choice of `config.engine_of_evaluation`."""
    output: Path | None = None
    """Folder in which evaluation/<name>/ is written (default: the run folder, or outputs/<task>/<model>)."""
    name: str | None = None
    """Name of the evaluation (default: base, final or checkpoint-N)."""
    overwrite: bool = False
    """True replaces an evaluation of this name that was made with other settings."""
    trust_code: bool = False
    """Run the code that the record of another user's run names."""


@dataclass(frozen=True)
class Plan:
    """An evaluation in which every setting has a value, checked as far as small files allow."""

    location: ModelLocation
    task: Task
    format: str
    """Name of the format that words the prompts."""
    data: dict[str, Any]
    """Arguments of Task.load, except split, num_rows and seed."""
    n: int | None
    """Number of problems; None is all of a benchmark."""
    k: int
    """Samples of each problem."""
    temperature: float
    """Sampling temperature; 0 is greedy."""
    top_p: float
    """Probability mass that is sampled from."""
    stop: tuple[str, ...]
    """Strings that end a response."""
    max_new_tokens: int | None
    """Most tokens of a response; None is default_max_new_tokens, or fewer if the model has no room."""
    default_max_new_tokens: int
    """Most tokens of a response, if neither a person nor the run says."""
    dtype: str
    """Precision of the model on a GPU: that of the run's forward passes; without a run `auto`, that of its files."""
    folder: Path
    """Folder that the evaluation is written to."""
    benchmark: str | None = None
    """Name of the benchmark; None for the task's own problems."""


def make_plan(settings: Settings) -> Plan:
    """The plan, after checking the settings against each other, the model's folder and its run.

    Raises: ValueError of one line.
    """
    _check_numbers(settings)
    location = locate(settings.model_path)
    # An evaluation written into a run folder is compared with that run, so a base model gets the run's problems.
    is_beside_run = not location.run and settings.output is not None and (settings.output / "run.yaml").is_file()
    run = read_record(settings.output) if is_beside_run and settings.output else location.run
    run_folder = settings.output if is_beside_run else location.run_folder
    name = _task_name(settings, run)
    if run and run_folder:
        is_named_by_run = {"task": settings.task is None, "format": settings.format is None}
        used = [str(run.get(key)) for key, is_used in is_named_by_run.items() if is_used and run.get("task") == name]
        trust.check_code(used, run_folder, run, trusts_code=settings.trust_code)
    task = _task(settings, run, name)
    is_of_run = run.get("task") in (name, task.name)
    format_name = settings.format or (run.get("format") if is_of_run else None) or _default_format(task)
    resolve(format_name, among=task.formats, kind="format")
    benchmark = settings.benchmark.benchmark if settings.benchmark else None
    # A benchmark is run with its usual settings, so that figures compare with those of papers; the run's settings do not matter.
    trainer, data_of_run = ({}, {}) if benchmark else (run.get("trainer") or {}, run.get("data") or {})
    # A supervised run has a section of `data` for each task.
    data_of_run = data_of_run[task.name] if isinstance(data_of_run.get(task.name), dict) else data_of_run
    data = {name: value for name, value in data_of_run.items() if name not in DATA_OF_RUN and value is not None}
    if settings.source is not None and settings.source != data.get("source"):
        # Columns, limits and shares belong to the source they were written for.
        data = {name: value for name, value in data.items() if name == "split_rule"} | {"source": settings.source}
    if settings.split_rule is not None:
        data["split_rule"] = settings.split_rule
    temperature = _first(settings.temperature, trainer.get("temperature"), benchmark and benchmark.temperature, 1.0)
    k = _first(settings.k, benchmark and temperature > 0 and benchmark.k, 1)
    if k > 1 and temperature == 0:
        raise ValueError(f"--k {k} with temperature 0 would write the same response {k} times; use --k 1")
    output = settings.output or location.run_folder
    if output is None:
        output = Path("outputs") / task.name / Path(location.shown).name
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; give a folder")
    plan = Plan(
        location=location,
        task=task,
        format=str(format_name),
        data=data,
        n=settings.n if benchmark else _first(settings.n, DEFAULT_NUM_PROBLEMS),
        k=int(k),
        temperature=float(temperature),
        top_p=float(_first(settings.top_p, benchmark and temperature > 0 and benchmark.top_p, 1.0)),
        # Stop strings belong to the format: without them a base model would go on after its answer.
        stop=tuple(_first(settings.stop, (run.get("generation") or {}).get("stop") if is_of_run else None, ())),
        max_new_tokens=settings.max_new_tokens or trainer.get("max_completion_length"),
        default_max_new_tokens=benchmark.max_new_tokens if benchmark else DEFAULT_MAX_NEW_TOKENS,
        dtype=_dtype(run),
        folder=output.joinpath("evaluation", settings.name or location.name, *([benchmark.name] if benchmark else [])),
        benchmark=benchmark.name if benchmark else None,
    )
    _refuse_other(plan, settings)
    return plan


def _task_name(settings: Settings, run: dict[str, Any]) -> str:
    """Name of the task: the person's, the benchmark's or the run's. Raises: ValueError without any."""
    task_name = settings.task or ("math" if settings.benchmark else run.get("task"))
    if task_name is None:
        raise ValueError(
            f"{settings.model_path} comes from no run that names its task; give --task ({', '.join(TASKS)})"
        )
    return str(task_name)


def _task(settings: Settings, run: dict[str, Any], name: str) -> Task:
    """The task of this name. Raises: ValueError if there is none, or if it does not fit the run or the benchmark."""
    task = find_task(name)
    if settings.benchmark:
        if task.columns != ("answer",):
            raise ValueError(f"--benchmarks have problems and answers; the task {task.name} reads {task.columns}")
    elif run and settings.task and run.get("task") != settings.task:
        raise ValueError(f"{settings.model_path} was trained on {run.get('task')}, not on {settings.task}")
    return task


def _dtype(run: Mapping[str, Any]) -> str:
    """Precision of a run's forward passes: autocast's if it was on, otherwise that of the weights."""
    if not run:
        return "auto"
    trainer, model = run.get("trainer") or {}, run.get("model") or {}
    if not trainer.get("use_cpu"):
        if trainer.get("fp16"):
            return "float16"
        if trainer.get("bf16") is not False:
            return "bfloat16"
    return str(model.get("dtype") or "float32")


def _default_format(task: Task) -> str:
    return "base" if "base" in task.formats else next(iter(task.formats))


def _first(*values: Any) -> Any:
    """The first value that is neither None nor False; 0 counts as a value."""
    return next(value for value in values if value is not None and value is not False)


def _check_numbers(settings: Settings) -> None:
    for name in ("n", "k", "max_new_tokens", "batch_size"):
        value = getattr(settings, name)
        if value is not None and not 1 <= value <= MANY:
            raise ValueError(f"--{name} must be at least 1 and at most {MANY:,}, got {value}")
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"--seed must be at least 0 and at most {2**32 - 1}, got {settings.seed}")
    if settings.temperature is not None and not 0 <= settings.temperature < float("inf"):
        raise ValueError(f"--temperature must be 0 (greedy) or more, got {settings.temperature}")
    check_stop(settings.stop or (), name="--stop")
    if settings.top_p is not None and not 0 < settings.top_p <= 1:
        raise ValueError(f"--top_p must be more than 0 and at most 1, got {settings.top_p}")
    if settings.name is not None and (reason := why_not_a_folder_name(settings.name)):
        raise ValueError(f"--name {settings.name!r:.80} {reason}")


def request(plan: Plan, settings: Settings) -> dict[str, Any]:
    """The settings that two attempts must share to be the same evaluation, with secrets blanked."""
    asked = {
        "task": plan.task.name,
        "format": plan.format,
        "model": plan.location.shown,
        "source": settings.benchmark.source if settings.benchmark else plan.data.get("source", "default"),
        "data": plan.data,
        "split": settings.split,
        "benchmark": settings.benchmark.name if settings.benchmark else None,
        "n": plan.n,
        "k": plan.k,
        "temperature": plan.temperature,
        "top_p": plan.top_p,
        "stop": list(plan.stop),
        "seed": settings.seed,
    }
    return typing.cast(dict[str, Any], redacted(asked))


def _refuse_other(plan: Plan, settings: Settings) -> None:
    if settings.overwrite or not (plan.folder / scores.SUMMARY).is_file():
        return
    before, now = scores.read_summary(plan.folder), request(plan, settings)
    # Older versions did not write these two; they had no other value.
    before = {"top_p": 1.0, "stop": [], **before}
    refuse_changed(plan.folder, before, now, names=now)


def refuse_changed(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, names: Iterable[str]) -> None:
    """Refuse a folder with an evaluation that differs in one of `names`. Raises: ValueError."""
    if changed := [name for name in names if before.get(name) != now[name]]:
        raise ValueError(
            f"{folder} holds an evaluation with another {changed[0]} "
            f"({before.get(changed[0])!r}, now {now[changed[0]]!r}); "
            "give this one a --name of its own, or --overwrite"
        )
