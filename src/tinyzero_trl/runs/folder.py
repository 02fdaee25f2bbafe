"""The folder that everything of a run is written to: its name, its lock, and the checkpoint that a resumed run starts from."""

from __future__ import annotations

import errno
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tinyzero_trl import storage
from tinyzero_trl.failures import ConfigError, Failure, explained
from tinyzero_trl.installation import ROOT
from tinyzero_trl.models import model_files
from tinyzero_trl.runs import resuming
from tinyzero_trl.runs.record import cut_metrics, packages, write_record
from tinyzero_trl.storage import locked, manifest

FILES = ("run.yaml", "metrics.jsonl", "run.lock", "report.html", "best.json")
"""Names of files that a run writes."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and the checkpoint it starts from."""

    path: Path
    """The run folder."""
    resume_from: Path | None
    """A usable checkpoint; None for a run that starts at step 0."""
    warnings: tuple[str, ...] = ()
    """Lines to print: checkpoints that were passed over and why, packages that changed."""
    is_finished: bool = False
    """True if the run ended before and the config asks for nothing more."""
    seconds_before: float = 0.0
    """Seconds that earlier attempts of the run took up to `resume_from`."""


def choose(
    cfg: DictConfig, *, outputs: Path = Path("outputs"), num_processes: int = 1, trusts_code: bool = False
) -> RunFolder:
    """The folder of this run: a new one, or that of the run to continue.

    trusts_code: True allows loading pickles of a checkpoint that another user wrote.
    Raises: ConfigError if the folder holds another run, or if there is nothing to continue.
    """
    resume = _resume_of(cfg)
    if resume is None:
        path = _new_path(cfg, outputs)
        _refuse_used(path)
        return RunFolder(path, None)
    if resume is True:
        return _continued(_newest_run(cfg, outputs), cfg, num_processes, trusts_code)
    given = Path(str(resume))
    if not given.is_dir():
        raise ConfigError(f"trainer.resume_from_checkpoint: {given} is not a folder")
    folder = given if not given.name.startswith("checkpoint-") else given.parent
    if cfg.output_dir and Path(cfg.output_dir).resolve() != folder.resolve():
        raise ConfigError(f"output_dir {cfg.output_dir} is not the run to resume, {folder}; leave one of them out")
    if given is folder:
        return _continued(given, cfg, num_processes, trusts_code)
    reason = manifest.why_not_usable(given)
    if reason:
        raise ConfigError(f"trainer.resume_from_checkpoint: {given} {reason}")
    resuming.check_same_run(given.parent, cfg)
    resuming.check_world(given, num_processes)
    manifest.check_trusted(given, trusts_code=trusts_code)
    return RunFolder(given.parent, given, is_finished=resuming.is_finished(given.parent, cfg, checkpoint=given))


def check_place(cfg: DictConfig, *, outputs: Path = Path("outputs")) -> None:
    """Check that the run can write to its folder; done by the first process, before anything is loaded.

    Raises: ConfigError or DiskFull, of one line that names the folder.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:  # data loaders and launchers would fail with errors that name no folder
        raise ConfigError(f"{error.strerror}: set TMPDIR to a folder that can be written") from error
    resume = _resume_of(cfg)
    if resume is None:
        path = _new_path(cfg, outputs)
    elif resume is True:
        path = _newest_run(cfg, outputs)
    else:
        path = Path(str(resume))
    try:
        storage.probe(path)
        if resume is None:
            _refuse_used(path)
        else:
            _refuse_odd(path)
    except OSError as error:
        failure = explained(error)
        if failure is None:
            raise ConfigError(f"{error.filename} cannot be written: {error.strerror}") from error
        raise failure from error


def _refuse_used(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(
            f"output_dir {path} is not empty and a run never overwrites another: "
            "choose another one, or continue it with trainer.resume_from_checkpoint=true"
        )


def _refuse_odd(path: Path) -> None:
    """Refuse a run folder in which a file that the run writes is a folder. Raises: OSError."""
    for name in FILES:
        if (path / name).is_dir():
            raise IsADirectoryError(
                errno.EISDIR, "it is a folder, and a file is to be written there; move it away", str(path / name)
            )


@contextmanager
def opened(
    cfg: DictConfig,
    *,
    num_processes: int,
    data: Mapping[str, Any],
    seeds: Mapping[str, Any],
    trusts_code: bool = False,
) -> Iterator[RunFolder]:
    """This run's folder, the same on every process, locked in the block; run.yaml is written unless the run is finished.

    trusts_code: as in `choose`. Raises: ConfigError or RunLocked, on every process.
    """
    from accelerate.utils import broadcast_object_list

    with ExitStack() as stack:
        answer: list[RunFolder | Failure | None] = [None]
        if os.environ.get("RANK", "0") == "0":
            try:
                folder = choose(cfg, num_processes=num_processes, trusts_code=trusts_code)
                model = model_files(str(cfg.model.model_name_or_path or ""), revision=cfg.model.model_revision)
                resuming.check_same_sources(folder.path, data=data, model=model)
                stack.enter_context(locked(folder.path))
                if not folder.is_finished:
                    folder = _begun(folder, cfg, data=data, model=model, seeds=seeds)
                answer = [folder]
            except Failure as failure:
                answer = [failure]
            except OSError as error:
                answer = [explained(error)]
                if answer[0] is None:
                    raise
        if num_processes > 1:
            broadcast_object_list(answer)
        if isinstance(answer[0], Failure):
            raise answer[0]
        assert answer[0] is not None
        yield answer[0]


def _begun(folder: RunFolder, cfg: DictConfig, **sources: Mapping[str, Any]) -> RunFolder:
    """The folder, after recording this attempt in run.yaml and dropping the metrics that it writes again."""
    changed = resuming.changed_packages(folder.path, packages()) if (folder.path / "run.yaml").is_file() else None
    write_record(folder.path, cfg, **sources)
    storage.sweep(folder.path / "rollouts")
    # Without a checkpoint everything is done again, including the evaluation before the first step.
    step = int(folder.resume_from.name.split("-")[1]) if folder.resume_from else -1
    seconds = cut_metrics(folder.path, step=step)
    return replace(folder, seconds_before=seconds, warnings=(*folder.warnings, *([changed] if changed else [])))


def announce(folder: RunFolder) -> None:
    """Print the run's folder and the checkpoint it starts from, or that it is finished; from the first process only."""
    if os.environ.get("RANK", "0") != "0":
        return
    if folder.is_finished:
        print(
            f"{folder.path} is finished, so nothing was done; raise trainer.max_steps, or what else it ended with, to go on",
            flush=True,
        )
    else:
        for line in folder.warnings:
            print(f"resume: {line}", flush=True)
        start = f", continuing {folder.resume_from.name}" if folder.resume_from else ""
        print(f"run folder: {folder.path}{start}", flush=True)


def say_what_next(folder: RunFolder, *, task: str, signal: int, step: int) -> None:
    """Print how to use the trained model, or how to continue the run after a signal; from the first process only."""
    if os.environ.get("RANK", "0") != "0":
        return
    if signal:
        again = shlex.join(["tinyzero", "resume", str(folder.path)])
        print(f"stopped after step {step}, checkpoint saved; go on with:\n  {again}", flush=True)
        return
    has_script = (ROOT / "scripts" / f"evaluate_{task}.py").is_file()
    command = f"python scripts/evaluate_{task}.py" if has_script else "tinyzero evaluate"
    print(f"done: model in {folder.path / 'model'}", flush=True)
    print(f"  evaluate it: {command} --model_path {folder.path}", flush=True)
    print(f"  see the run: tinyzero report {folder.path}", flush=True)


def _resume_of(cfg: DictConfig) -> Any:
    """True for the newest run, a path that was given, or None for a new run."""
    resume = cfg.trainer.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(resume).lower(), resume) or None


def _runs_of_task(cfg: DictConfig, outputs: Path) -> Path:
    """The folder that holds the runs of the config's task."""
    return outputs / Path(str(cfg.task).split(":")[0]).stem


def _new_path(cfg: DictConfig, outputs: Path) -> Path:
    """The folder of a new run: `output_dir`, or one named by recipe and time."""
    if cfg.output_dir:
        return Path(cfg.output_dir)
    return _runs_of_task(cfg, outputs) / f"{cfg.trainer.run_name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


def _newest_run(cfg: DictConfig, outputs: Path) -> Path:
    """The folder `output_dir`, or the newest run of the config's recipe. Raises: ConfigError if there is none."""
    if cfg.output_dir:
        path = Path(cfg.output_dir)
        if not path.is_dir():
            raise ConfigError(f"nothing to resume: output_dir {path} does not exist")
        return path
    folder = _runs_of_task(cfg, outputs)
    runs = [path for path in folder.glob(f"{cfg.trainer.run_name}-*") if (path / "run.yaml").is_file()]
    runs = [path for path in runs if re.fullmatch(r"\d{8}-\d{6}", path.name.removeprefix(f"{cfg.trainer.run_name}-"))]
    if not runs:
        raise ConfigError(
            f"nothing to resume: {folder} has no run of {cfg.trainer.run_name}; give output_dir=<run folder>"
        )
    return max(runs, key=lambda path: path.name)


def _continued(path: Path, cfg: DictConfig, num_processes: int, trusts_code: bool) -> RunFolder:
    resuming.check_same_run(path, cfg)
    found = manifest.newest_usable(path)
    warnings = tuple(f"passed over {line}" for line in found.passed_over)
    is_finished = resuming.is_finished(path, cfg)
    if found.path is None:
        start = "" if is_finished else ": starting from step 0"
        return RunFolder(path, None, (*warnings, f"{path} has no usable checkpoint{start}"), is_finished=is_finished)
    resuming.check_world(found.path, num_processes)
    manifest.check_trusted(found.path, trusts_code=trusts_code)
    return RunFolder(path, found.path, warnings, is_finished=is_finished)
