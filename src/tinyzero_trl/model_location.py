"""What a person named as model -> the folder or hub id to load, and the run it belongs to. Reads small files only."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyzero_trl import config, hub, manifest
from tinyzero_trl.record import plain_record

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelLocation:
    """Where a model is, all checks passed that need no library."""

    name: str
    """What evaluations of it are called: base, final, checkpoint-N."""
    path: str
    """Folder or hub id that holds the weights; for an adapter, the model below it."""
    adapter: str | None = None
    """Folder of a LoRA adapter, or None."""
    run_folder: Path | None = None
    """The run it comes from, or None."""
    run: dict[str, Any] = field(default_factory=dict)
    """Content of that run's run.yaml."""

    @property
    def shown(self) -> str:
        """The path a person recognises."""
        return self.adapter or self.path


def locate(model_path: str) -> ModelLocation:
    """The model of a run folder, checkpoint, model folder, LoRA adapter, the word `tiny` or a hub id.

    Of a run: `model/` where the run ended, otherwise its newest checkpoint without a fault.
    Raises: ValueError with one line that says what is there and what would be right.
    """
    folder = Path(model_path).expanduser()
    if folder.is_file():
        raise ValueError(f"--model_path {model_path} is a file; give the folder that holds the model")
    if not folder.is_dir():
        return _without_folder(model_path)
    if not (folder / "run.yaml").is_file():
        is_of_run = (folder.parent / "run.yaml").is_file()
        # What a run of ours writes is sealed; a folder of another's need not be.
        is_ours = (is_of_run and folder.name == "model") or (
            folder.name.startswith("checkpoint-") and (is_of_run or any(folder.glob("rollout_state*")))
        )
        if manifest.is_sealed(folder) or is_ours:
            _refuse_fault(folder)
        return _of_folder(folder, run_folder=folder.parent if is_of_run else None)
    final = folder / "model"
    if final.is_dir():
        # It is put there whole: one that is not was changed, and an older checkpoint in its place would be another model.
        _refuse_fault(final)
        return _of_folder(final, run_folder=folder)
    found = manifest.newest_usable(folder)
    if found.path is None:
        seen = "; ".join(found.passed_over) or "it has neither model/ nor a checkpoint"
        raise ValueError(f"--model_path {model_path} is a run without a usable model: {seen}")
    return _of_folder(found.path, run_folder=folder)


def _without_folder(model_path: str) -> ModelLocation:
    path = config.model_path(model_path)
    if path != model_path:
        if not Path(path).is_dir():
            raise ValueError(f"--model_path {model_path}: the packaged model is missing from {path}")
        return ModelLocation("base", path)
    if not HUB_ID.fullmatch(model_path):
        near = hub.nearest_model(model_path)
        raise ValueError(
            f"--model_path {model_path}: there is no such folder, and it is no hub id (organisation/name){near}"
        )
    return ModelLocation("base", model_path)


def _of_folder(folder: Path, *, run_folder: Path | None) -> ModelLocation:
    name = "base" if run_folder is None else "final" if folder.name == "model" else folder.name
    run = read_record(run_folder) if run_folder else {}
    if (folder / "adapter_config.json").is_file():
        try:
            content = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{folder / 'adapter_config.json'} is not JSON: {error}; save the adapter again"
            ) from error
        below = str(content.get("base_model_name_or_path") or "") if isinstance(content, dict) else ""
        if not below:
            raise ValueError(f"{folder / 'adapter_config.json'} does not name the model below the adapter")
        # An adapter is a trained thing also where no run is left around it.
        adapter_name = "adapter" if run_folder is None else name
        return ModelLocation(adapter_name, locate(below).path, str(folder), run_folder, run)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--model_path {folder} is not a model: it has neither config.json nor adapter_config.json, "
            "and no run.yaml of a run"
        )
    return ModelLocation(name, str(folder), None, run_folder, run)


def _refuse_fault(folder: Path) -> None:
    if reason := manifest.fault(folder):
        raise ValueError(f"--model_path {folder} {reason}; evaluate another checkpoint of the run")


def read_record(run_folder: Path) -> dict[str, Any]:
    """Content of a run folder's run.yaml. Raises: ValueError that names the file and what is wrong with it."""
    file = run_folder / "run.yaml"
    content = plain_record(file)
    trainer = content.get("trainer") or {}
    for name, kinds in (("temperature", (int, float)), ("max_completion_length", (int,))):
        if trainer.get(name) is not None and type(trainer[name]) not in kinds:
            raise ValueError(f"{file} is not the record of a run: trainer.{name} is {trainer[name]!r} and no number")
    for name in ("task", "format"):
        if content.get(name) is not None and not isinstance(content[name], str):
            raise ValueError(f"{file} is not the record of a run: {name} is {content[name]!r} and no name")
    return content
