"""Checkpoints that are whole or not there: written aside, flushed, sealed by a manifest, and only then counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tinyzero_trl import storage
from tinyzero_trl.failures import FULL, DiskFull, NumericFailure
from tinyzero_trl.storage import manifest

MIN_KEPT = 2
"""Sealed checkpoints kept at least: with one, a disk that dies while the next is written loses everything."""
FULL_WORDS = (
    "no space left",
    "disk quota",
    "file too large",
    "inline_container",
    "iostream error",
    "file write failed",
    "os error 28",
    "os error 122",
)

# A CPU process of several has the device `cpu:0`, which torch.load's map_location does not know ("don't know how to
# restore data location"), so that resuming failed there (transformers' _load_optimizer_and_scheduler).
torch.serialization.register_package(
    9, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


@contextmanager
def sealed(folder: Path, *, run: Path, step: int, writes: bool, accelerator: Any) -> Iterator[Path]:
    """Seal what the block writes to the folder it is given, and rename that to `folder`; remove it if the block fails.

    writes: this process seals, of those that share a disk. Raises: DiskFull where the disk is the reason; `run` has the checkpoints before.
    """
    beside = folder.parent / manifest.UNFINISHED / folder.name
    if writes:
        storage.fresh_folder(beside.parent)  # an attempt that was killed may have left one
    accelerator.wait_for_everyone()
    try:
        yield beside
        accelerator.wait_for_everyone()
        if writes:
            manifest.seal(beside, step=step, world_size=accelerator.num_processes)
            manifest.publish(beside, folder)
        accelerator.wait_for_everyone()
    except Exception as error:
        if writes:
            shutil.rmtree(beside.parent, ignore_errors=True)
        if not _is_disk_full(error):
            raise
        kept = manifest.newest_usable(run).path
        free = shutil.disk_usage(run).free / 2**20
        last = f"the last good checkpoint is {kept}" if kept else "there is no earlier checkpoint"
        raise DiskFull(f"the disk is full ({free:.0f} MiB left): {folder} could not be written; {last}") from error


def refuse_non_finite(model: torch.nn.Module, *, step: int, accelerator: Any) -> None:
    """Raises: NumericFailure on all processes where a weight of any is not finite."""
    tensors = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters()]
    tensors = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    bad = any(not bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())
    flag = torch.tensor(float(bad), device=accelerator.device)
    if accelerator.reduce(flag, reduction="sum").item():
        raise NumericFailure(f"weights are not finite at step {step}: nothing was saved")


def rotate(run: Path, *, keep: int, best: str | None, history: Sequence[dict[str, Any]]) -> None:
    """Delete all sealed checkpoints but the last `keep`, those with the best evaluations, and `best`; unsealed ones do not count."""
    checkpoints = [path for path in manifest.checkpoints(run) if manifest.is_sealed(path)]
    spared = {write_best(run, checkpoints, history), Path(best or "")}
    for path in checkpoints[: -max(keep, MIN_KEPT)]:
        if path not in spared:
            # The seal goes first: a folder that is half deleted must not look whole.
            (path / manifest.MANIFEST).unlink()
            shutil.rmtree(path)


def write_best(run: Path, checkpoints: list[Path], history: Sequence[dict[str, Any]]) -> Path | None:
    """The checkpoint with the highest held-out accuracy, the oldest of equals, named in best.json; None without evaluation.

    history: the trainer's log; only a checkpoint of a step that was evaluated can be the best.
    """
    evaluations = [entry for entry in history if entry.get("eval_accuracy") is not None]
    best: tuple[float, Path] | None = None
    for path in checkpoints:
        found = [entry["eval_accuracy"] for entry in evaluations if entry["step"] == int(path.name.split("-")[1])]
        if found and (best is None or found[-1] > best[0]):
            best = found[-1], path
    if best is None:
        return None
    content = {"checkpoint": best[1].name, "eval_accuracy": best[0]}
    storage.write_text(run / "best.json", json.dumps(content) + "\n")
    return best[1]


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(word in str(error).lower() for word in FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
