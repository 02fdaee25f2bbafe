"""The name of a model -> the folder or hub id to load, and the run it belongs to. Reads small files only."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyzero_trl import hub
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.installation import PACKAGE
from tinyzero_trl.storage import manifest, plain_record

EVALUATED, TRAINED = "--model_path ", "model.model_name_or_path="
"""Words in front of a model's path on the command lines of evaluation and of training; errors begin with them."""
START = "start"
"""Name of the folder, in a run that starts from an adapter, that holds the adapter merged into its model."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_path(name: str) -> str:
    """The folder or hub id that `name` loads from: the packaged folder for the name of a shipped model, otherwise `name` itself."""
    return str(PACKAGE / name.replace("-", "_")) if name in hub.SHIPPED else name


@dataclass(frozen=True)
class ModelLocation:
    """The place of a model, after all checks that need no library."""

    name: str
    """Name of its evaluations: base, final or checkpoint-N."""
    path: str
    """Folder or hub id with the weights; of an adapter, those of the model below it."""
    adapter: str | None = None
    """Folder of the LoRA adapter, or None."""
    run_folder: Path | None = None
    """Folder of the run that the model comes from, or None."""
    run: dict[str, Any] = field(default_factory=dict)
    """Content of that run's run.yaml; empty without a run."""

    @property
    def shown(self) -> str:
        """The path to name in messages: the adapter's, or else the model's."""
        return self.adapter or self.path


def locate(model_path: str, *, typed: str = EVALUATED) -> ModelLocation:
    """The model of a run folder, checkpoint, model folder, LoRA adapter, the name of a shipped model (`tiny`, `tiny-search`) or a hub id.

    A run folder stands for its `model/` if the run ended, otherwise for its newest usable checkpoint.
    typed: the words in front of the path on the command line; messages begin with both.
    Raises: ConfigError of one line that says what was found and what would be right.
    """
    folder = Path(model_path).expanduser()
    if folder.is_file():
        if folder.suffix == ".gguf":
            raise ConfigError(f"{typed}{model_path} is a GGUF file; give the folder of the model it was made from")
        raise ConfigError(f"{typed}{model_path} is a file; give the folder that holds the model")
    if not folder.is_dir():
        return _without_folder(model_path, typed)
    if not (folder / "run.yaml").is_file():
        is_of_run = (folder.parent / "run.yaml").is_file()
        # Our runs seal what they write; a folder from elsewhere need not be sealed.
        is_ours = (is_of_run and folder.name == "model") or (
            folder.name.startswith("checkpoint-") and (is_of_run or any(folder.glob("rollout_state*")))
        )
        if manifest.is_sealed(folder) or is_ours:
            _refuse_unusable(folder, typed)
        return _of_folder(folder, run_folder=folder.parent if is_of_run else None, typed=typed)
    final = folder / "model"
    if final.is_dir():
        # A run renames model/ into place whole, so a damaged one was changed later. An older checkpoint would be another model.
        _refuse_unusable(final, typed)
        return _of_folder(final, run_folder=folder, typed=typed)
    found = manifest.newest_usable(folder)
    if found.path is None:
        seen = "; ".join(found.passed_over) or "it has neither model/ nor a checkpoint"
        raise ConfigError(f"{typed}{model_path} is a run without a usable model: {seen}")
    return _of_folder(found.path, run_folder=folder, typed=typed)


def _without_folder(model_path: str, typed: str) -> ModelLocation:
    path = load_path(model_path)
    if path != model_path:
        if not Path(path).is_dir():
            raise ConfigError(f"{typed}{model_path}: the packaged model is missing from {path}")
        return ModelLocation("base", path)
    if not HUB_ID.fullmatch(model_path):
        near = hub.nearest_model(model_path)
        raise ConfigError(
            f"{typed}{model_path}: there is no such folder, and it is no hub id (organisation/name){near}"
        )
    return ModelLocation("base", model_path)


def _of_folder(folder: Path, *, run_folder: Path | None, typed: str) -> ModelLocation:
    name = "base" if run_folder is None else "final" if folder.name == "model" else folder.name
    run = read_record(run_folder) if run_folder else {}
    if (folder / "adapter_config.json").is_file():
        file = folder / "adapter_config.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file} is not JSON: {error}; save the adapter again") from error
        below = str(content.get("base_model_name_or_path") or "") if isinstance(content, dict) else ""
        if not below:
            raise ConfigError(f"{file} does not name the model below the adapter (base_model_name_or_path)")
        if run_folder and not Path(below).is_dir() and (run_folder / START).is_dir():
            below = str(run_folder / START)  # the run folder was moved, and its path in adapter_config.json is stale
        base = locate(below, typed=f"{file} names a model below the adapter that cannot be used: ")
        if base.adapter:
            raise ConfigError(
                f"{file}: the model below the adapter, {below}, is itself an adapter; make it whole with `tinyzero merge`"
            )
        # An adapter was trained, even if its run folder is gone, so it is no base model.
        adapter_name = "adapter" if run_folder is None else name
        return ModelLocation(adapter_name, base.path, str(folder), run_folder, run)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{typed}{folder} is not a model: it has neither config.json nor adapter_config.json, and no run.yaml of a run"
        )
    return ModelLocation(name, str(folder), None, run_folder, run)


def _refuse_unusable(folder: Path, typed: str) -> None:
    if reason := manifest.why_not_usable(folder):
        raise ConfigError(f"{typed}{folder} {reason}; take another checkpoint of the run")


def read_record(run_folder: Path) -> dict[str, Any]:
    """Content of a run folder's run.yaml. Raises: ConfigError that names the file and its first wrong entry."""
    file = run_folder / "run.yaml"
    try:
        content = plain_record(file)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    stop = (content.get("generation") or {}).get("stop")
    if stop is not None and not (isinstance(stop, list) and all(isinstance(text, str) for text in stop)):
        raise ConfigError(f"{file} is not the record of a run: generation.stop is {stop!r:.80} and no list of texts")
    for name in ("task", "format"):
        if content.get(name) is not None and not isinstance(content[name], str):
            raise ConfigError(f"{file} is not the record of a run: {name} is {content[name]!r} and no name")
    return content
