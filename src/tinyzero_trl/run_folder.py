"""The one folder everything of a run goes to: its name, its lock, its record, and where a resumed run goes on."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl import manifest
from tinyzero_trl.failures import ConfigError, Failure, RunLocked

if TYPE_CHECKING:
    from datasets import Dataset

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PACKAGES = (
    "tinyzero-trl",
    "torch",
    "trl",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "deepspeed",
    "vllm",
    "hydra-core",
)
SECRET = re.compile(r"token|secret|password|api_?key|credential", re.IGNORECASE)
NOT_SECRET = re.compile(r"tokens|token_id|tokenizer|token_level")
FIXED_ON_RESUME = (
    "task",
    "format",
    "rewards",
    "algorithm",
    "data",
    "model",
    "trainer.seed",
    "trainer.per_device_train_batch_size",
    "trainer.gradient_accumulation_steps",
    "trainer.steps_per_generation",
    "trainer.generation_batch_size",
    "trainer.num_generations",
    "trainer.num_iterations",
)
"""Keys a resumed run must share with the run it continues."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run writes, and the checkpoint it starts from."""

    path: Path
    resume_from: Path | None
    """A usable checkpoint, or None for a run that starts at step 0."""
    notes: tuple[str, ...] = ()
    """Lines to tell the person: checkpoints passed over and why."""
    seconds_before: float = 0.0
    """What earlier attempts of the run took up to `resume_from`."""


def choose(cfg: DictConfig, *, outputs: Path = Path("outputs"), num_processes: int = 1) -> RunFolder:
    """The folder of this run: a new one, or that of the run to continue.

    Raises: ConfigError, when the folder holds another run, or there is nothing to continue.
    """
    resume = cfg.trainer.resume_from_checkpoint
    resume = {"true": True, "false": None}.get(str(resume).lower(), resume) or None
    task = Path(str(cfg.task).split(":")[0]).stem
    if resume is None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = Path(cfg.output_dir) if cfg.output_dir else outputs / task / f"{cfg.trainer.run_name}-{stamp}"
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(
                f"output_dir {path} is not empty and a run never overwrites another: "
                "choose another one, or continue it with trainer.resume_from_checkpoint=true"
            )
        return RunFolder(path, None)
    if resume is True:
        return _continued(_newest_run(cfg, outputs / task), cfg, num_processes)
    given = Path(str(resume))
    if not given.is_dir():
        raise ConfigError(f"trainer.resume_from_checkpoint: {given} is not a folder")
    folder = given if not given.name.startswith("checkpoint-") else given.parent
    if cfg.output_dir and Path(cfg.output_dir).resolve() != folder.resolve():
        raise ConfigError(f"output_dir {cfg.output_dir} is not the run to resume, {folder}; leave one of them out")
    if given is folder:
        return _continued(given, cfg, num_processes)
    reason = manifest.fault(given)
    if reason:
        raise ConfigError(f"trainer.resume_from_checkpoint: {given} {reason}")
    _check_same_run(given.parent, cfg)
    _check_world(given, num_processes)
    return RunFolder(given.parent, given)


def fingerprint(dataset: Dataset, columns: Sequence[str]) -> str:
    """A hash of the rows' raw columns, in order: equal for equal data on any machine."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(dataset), 10_000):
        batch = dataset[start : start + 10_000]
        digest.update(json.dumps([batch[column] for column in sorted(columns)], default=str).encode())
    return digest.hexdigest()


@contextmanager
def opened(
    cfg: DictConfig, *, num_processes: int, data: Mapping[str, Any], seeds: Mapping[str, Any]
) -> Iterator[RunFolder]:
    """This run's folder, the same on every process, locked, with its run.yaml written.

    Raises: ConfigError or RunLocked, on every process.
    """
    from accelerate.utils import broadcast_object_list

    with ExitStack() as stack:
        answer: list[RunFolder | Failure | None] = [None]
        if os.environ.get("RANK", "0") == "0":
            try:
                folder = choose(cfg, num_processes=num_processes)
                stack.enter_context(locked(folder.path))
                write_record(folder.path, cfg, data=data, seeds=seeds)
                seconds = cut_metrics(folder.path, step=_step_of(folder.resume_from))
                answer = [replace(folder, seconds_before=seconds)]
            except Failure as failure:
                answer = [failure]
        if num_processes > 1:
            broadcast_object_list(answer)
        if isinstance(answer[0], Failure):
            raise answer[0]
        assert answer[0] is not None
        yield answer[0]


def announce(folder: RunFolder) -> None:
    """Say where the run writes and where it starts, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        for note in folder.notes:
            print(f"resume: {note}", flush=True)
        start = f", continuing {folder.resume_from.name}" if folder.resume_from else ""
        print(f"run folder: {folder.path}{start}", flush=True)


def say_what_next(folder: RunFolder, words: Sequence[str], *, signal: int, step: int) -> None:
    """Say how to use what the run made, or how to go on with it after a signal."""
    if os.environ.get("RANK", "0") != "0":
        return
    task = folder.path.parent.name
    if signal:
        kept = [word for word in words if not re.match(r"\+*(trainer\.resume_from_checkpoint|output_dir)=", word)]
        again = " ".join(map(shlex.quote, [*kept, f"trainer.resume_from_checkpoint={folder.path}"]))
        print(
            f"stopped after step {step}, checkpoint saved; go on with:\n  accelerate launch {shlex.quote(sys.argv[0])} {again}",
            flush=True,
        )
        return
    scripts = sorted(path.name for path in SCRIPTS.glob("evaluate_*.py"))
    script = f"evaluate_{task}.py" if f"evaluate_{task}.py" in scripts else "evaluate_<task>.py"
    print(f"done: model in {folder.path / 'model'}", flush=True)
    print(f"  evaluate it: python scripts/{script} --model_path {folder.path}", flush=True)
    print(f"  see the run: tinyzero report {folder.path}", flush=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the run folder; the kernel frees the lock of a process that dies, so a stale run.lock is simply taken over.

    Raises: RunLocked, naming the process that holds it.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = path / "run.lock"
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunLocked(f"{path} is in use by {file.read().strip() or 'another process'}") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n")
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def write_record(path: Path, cfg: DictConfig, *, data: Mapping[str, Any], seeds: Mapping[str, Any]) -> None:
    """Write run.yaml: the resolved config, secrets blanked, and where the run comes from."""
    content = redacted(OmegaConf.to_container(cfg, resolve=True))
    provenance = {
        **_git(),
        "command": " ".join(redacted_argument(item) for item in sys.argv),
        "python": platform.python_version(),
        "packages": _packages(),
        "hardware": _hardware(),
        "data": dict(data),
        "seeds": dict(seeds),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    target = path / "run.yaml"
    if target.exists():
        previous = OmegaConf.to_container(OmegaConf.load(target))
        history = previous.get("provenance", {})  # type: ignore[union-attr]
        earlier = history.pop("earlier", [])
        provenance["earlier"] = [*earlier, history]
    part = path / "run.yaml.part"
    OmegaConf.save(OmegaConf.create({**content, "provenance": provenance}), part)
    os.replace(part, target)


def cut_metrics(path: Path, *, step: int) -> float:
    """Drop the lines of metrics.jsonl after `step`, which a resumed run writes again; returns the seconds they reached."""
    file = path / "metrics.jsonl"
    if not file.is_file():
        return 0.0
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("step", 0) <= step:
            kept.append(entry)
    part = path / "metrics.jsonl.part"
    part.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    os.replace(part, file)
    return float(kept[-1]["seconds"]) if kept else 0.0


def redacted(value: Any, key: str = "") -> Any:
    """`value` with everything under a key that names a secret replaced by `<redacted>`."""
    if isinstance(value, dict):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, key) for item in value]
    return "<redacted>" if isinstance(value, str) and value and _is_secret(key) else value


def redacted_argument(argument: str) -> str:
    """A command-line word with the value of a secret key blanked."""
    key, equals, value = argument.partition("=")
    return f"{key}=<redacted>" if equals and value and _is_secret(key) else argument


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def _is_secret(key: str) -> bool:
    return bool(SECRET.search(key)) and not NOT_SECRET.search(key)


def _newest_run(cfg: DictConfig, folder: Path) -> Path:
    if cfg.output_dir:
        path = Path(cfg.output_dir)
        if not path.is_dir():
            raise ConfigError(f"nothing to resume: output_dir {path} does not exist")
        return path
    runs = [path for path in folder.glob(f"{cfg.trainer.run_name}-*") if (path / "run.yaml").is_file()]
    runs = [path for path in runs if re.fullmatch(r"\d{8}-\d{6}", path.name.removeprefix(f"{cfg.trainer.run_name}-"))]
    if not runs:
        raise ConfigError(
            f"nothing to resume: {folder} has no run of {cfg.trainer.run_name}; give output_dir=<run folder>"
        )
    return max(runs, key=lambda path: path.name)


def _continued(path: Path, cfg: DictConfig, num_processes: int) -> RunFolder:
    if not (path / "run.yaml").is_file():
        raise ConfigError(f"nothing to resume: {path} is not a run folder (it has no run.yaml)")
    _check_same_run(path, cfg)
    found = manifest.newest_usable(path)
    notes = tuple(f"passed over {line}" for line in found.passed_over)
    if found.path is None:
        return RunFolder(path, None, (*notes, f"{path} has no usable checkpoint: starting from step 0"))
    _check_world(found.path, num_processes)
    return RunFolder(path, found.path, notes)


def _check_same_run(path: Path, cfg: DictConfig) -> None:
    if not (path / "run.yaml").is_file():
        raise ConfigError(f"nothing to resume: {path} is not a run folder (it has no run.yaml)")
    before = OmegaConf.load(path / "run.yaml")
    for key in FIXED_ON_RESUME:
        old, new = _plain(OmegaConf.select(before, key)), redacted(_plain(OmegaConf.select(cfg, key)))
        if old != new:
            raise ConfigError(f"cannot continue {path}: {key} was {old!r} and is now {new!r}")


def _check_world(checkpoint: Path, num_processes: int) -> None:
    before = manifest.facts(checkpoint).get("world_size")
    if before != num_processes:
        raise ConfigError(
            f"cannot continue {checkpoint}: it was written by {before} processes, this run has {num_processes}"
        )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _git() -> dict[str, Any]:
    root = Path(__file__).resolve().parents[2]
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"git_commit": None, "git_dirty": None}
    if commit.returncode:
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit.stdout.strip(), "git_dirty": bool(status.stdout.strip())}


def _packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, Any]:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": len(os.sched_getaffinity(0)), "gpus": names, "host": platform.platform()}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
