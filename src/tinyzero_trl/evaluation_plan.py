"""What a person asked of an evaluation -> a plan, checked as far as small files allow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl import scores
from tinyzero_trl.model_location import ModelLocation, locate, read_record
from tinyzero_trl.task import Task, resolve
from tinyzero_trl.tasks import TASKS, find_task

DEFAULT_NUM_PROBLEMS = 1024
"""Gives an interval of about +-3 points."""
DATA_OF_RUN = ("num_train_rows", "num_eval_rows", "seed", "split", "num_rows")
"""Keys of a run's `data` that are about its training; the others shape the problems, and hold in evaluation too."""


@dataclass(frozen=True)
class Settings:
    """What a person asked for; None is "as the run did", and where there is no run, the default named here."""

    model_path: str
    """Run folder, checkpoint, model folder, LoRA adapter, `tiny` or hub id."""
    task: str | None = None
    """Name of the task or path/file.py:TASK."""
    format: str | None = None
    """Format of the task; base."""
    source: str | None = None
    """Where the rows come from; the task's own default."""
    split: str = "test"
    """test or validation."""
    n: int = DEFAULT_NUM_PROBLEMS
    """Problems."""
    k: int = 1
    """Samples of each problem."""
    temperature: float | None = None
    """0 is greedy; 1."""
    max_new_tokens: int | None = None
    """Tokens a response may have; 1,024 or what the model has room for."""
    seed: int = 0
    """Draws the problems and the samples."""
    batch_size: int | None = None
    """Sequences generated at once; the sampler's choice."""
    engine: str = "transformers"
    """Who generates: transformers, server (vLLM in processes of its own) or colocate (vLLM in this one)."""
    output: Path | None = None
    """Folder that gets evaluation/<name>/; the run folder, or outputs/<task>/<model>."""
    name: str | None = None
    """Name of the evaluation; base, final or checkpoint-N."""
    overwrite: bool = False
    """Replace an evaluation of this name that was made with other settings."""


@dataclass(frozen=True)
class Plan:
    """Settings with every None answered, checked as far as small files allow."""

    location: ModelLocation
    task: Task
    format: str
    data: dict[str, Any]
    """Arguments of Task.load besides split, num_rows and seed."""
    temperature: float
    max_new_tokens: int | None
    folder: Path
    """The evaluation folder."""


def make_plan(settings: Settings) -> Plan:
    """Settings checked against each other, the model's folder and its run. Raises: ValueError with one line."""
    _check_numbers(settings)
    location = locate(settings.model_path)
    # What is written into a run folder is there to be compared with it: a base model then answers the run's problems.
    is_beside_run = not location.run and settings.output is not None and (settings.output / "run.yaml").is_file()
    run = read_record(settings.output) if is_beside_run and settings.output else location.run
    task_name = settings.task or run.get("task")
    if task_name is None:
        raise ValueError(
            f"{settings.model_path} comes from no run that names its task; give --task ({', '.join(TASKS)})"
        )
    if run and settings.task and run.get("task") != settings.task:
        raise ValueError(f"{settings.model_path} was trained on {run.get('task')}, not on {settings.task}")
    task = find_task(str(task_name))
    format_name = settings.format or run.get("format") or "base"
    resolve(format_name, among=task.formats, kind="format")
    data = {
        name: value for name, value in (run.get("data") or {}).items() if name not in DATA_OF_RUN and value is not None
    }
    if settings.source is not None:
        data["source"] = settings.source
    trainer = run.get("trainer") or {}
    temperature = settings.temperature if settings.temperature is not None else float(trainer.get("temperature", 1.0))
    if settings.k > 1 and temperature == 0:
        raise ValueError(
            f"--k {settings.k} with temperature 0 would write the same response {settings.k} times; use --k 1"
        )
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
        temperature=temperature,
        max_new_tokens=settings.max_new_tokens or trainer.get("max_completion_length"),
        folder=output / "evaluation" / (settings.name or location.name),
    )
    _refuse_other(plan, settings)
    return plan


def _check_numbers(settings: Settings) -> None:
    for name in ("n", "k", "max_new_tokens", "batch_size"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    if settings.temperature is not None and not 0 <= settings.temperature < float("inf"):
        raise ValueError(f"--temperature must be 0 (greedy) or more, got {settings.temperature}")
    if settings.name is not None and (not settings.name or "/" in settings.name or settings.name in (".", "..")):
        raise ValueError(f"--name {settings.name!r} must be the name of one folder")


def request(plan: Plan, settings: Settings) -> dict[str, Any]:
    """What makes two evaluations the same one."""
    return {
        "task": plan.task.name,
        "format": plan.format,
        "model": plan.location.shown,
        "source": plan.data.get("source", "default"),
        "data": plan.data,
        "split": settings.split,
        "n": settings.n,
        "k": settings.k,
        "temperature": plan.temperature,
        "seed": settings.seed,
    }


def _refuse_other(plan: Plan, settings: Settings) -> None:
    if settings.overwrite or not (plan.folder / scores.SUMMARY).is_file():
        return
    before, now = scores.read_summary(plan.folder), request(plan, settings)
    if changed := [name for name in now if before.get(name) != now[name]]:
        raise ValueError(
            f"{plan.folder} holds an evaluation with another {changed[0]} "
            f"({before.get(changed[0])!r}, now {now[changed[0]]!r}); "
            "give this one a --name of its own, or --overwrite"
        )
