"""Checkpoints that are whole or not there: written, flushed, sealed by a manifest, and only then counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from trl import GRPOTrainer

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


class Checkpoints(GRPOTrainer):
    """Saves that seal, rotation that counts sealed ones only, no weights that are not finite, no pickled arguments."""

    _beside: Path | None = None
    """Where transformers puts a checkpoint's folder while it is written."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._refuse_non_finite()
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = (
            self.args.save_total_limit,
            None,
        )  # TRL rotates before the seal, unsealed ones too
        try:
            with self.whole(folder) as beside:
                self._beside = beside.parent
                super()._save_checkpoint(model, trial)
                self._point_best_to(folder, beside=beside)
        finally:
            self.args.save_total_limit, self._beside = limit, None
        if self.args.should_save and limit is not None:
            self._rotate(folder.parent, keep=max(limit, MIN_KEPT))

    def _point_best_to(self, folder: Path, *, beside: Path) -> None:
        """transformers has named the folder being written as the best (`metric_for_best_model`); it will be `folder`."""
        if self.state.best_model_checkpoint == str(beside):
            self.state.best_model_checkpoint = str(folder)
            if self.args.should_save:
                self.state.save_to_json(str(beside / TRAINER_STATE_NAME))

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With a limit of 1, transformers deletes here all but the best, the seal not first.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._beside or super()._get_output_dir(trial))

    def save_final(self, folder: Path) -> None:
        """Write the model and tokenizer to `folder`, sealed."""
        self._refuse_non_finite()
        with self.whole(folder) as beside:
            self.save_model(str(beside))

    @contextmanager
    def whole(self, folder: Path) -> Iterator[Path]:
        """What the block writes to the folder it is given is sealed and becomes `folder` if it ends well, and is removed if it does not.

        Raises: DiskFull where the disk is why.
        """
        beside = folder.parent / manifest.UNFINISHED / folder.name
        if self.args.should_save:
            storage.fresh_folder(
                beside.parent
            )  # in the place of what an attempt that was killed left, or somebody laid there
        self.accelerator.wait_for_everyone()
        try:
            yield beside
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                manifest.seal(beside, step=self.state.global_step, world_size=self.accelerator.num_processes)
                manifest.publish(beside, folder)
            self.accelerator.wait_for_everyone()
        except Exception as error:
            if self.args.should_save:
                shutil.rmtree(beside.parent, ignore_errors=True)
            if not _is_disk_full(error):
                raise
            kept = manifest.newest_usable(Path(self.args.output_dir)).path
            free = shutil.disk_usage(self.args.output_dir).free / 2**20
            last = f"the last good checkpoint is {kept}" if kept else "there is no earlier checkpoint"
            raise DiskFull(f"the disk is full ({free:.0f} MiB left): {folder} could not be written; {last}") from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle that nothing here reads, and that holds tokens (hub_token) when they are set.
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def _refuse_non_finite(self) -> None:
        tensors = [getattr(parameter, "ds_tensor", parameter) for parameter in self.model.parameters()]
        tensors = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
        bad = any(not bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor.is_floating_point())
        flag = torch.tensor(float(bad), device=self.accelerator.device)
        if self.accelerator.reduce(flag, reduction="sum").item():
            raise NumericFailure(f"weights are not finite at step {self.state.global_step}: nothing was saved")

    def _rotate(self, run_folder: Path, *, keep: int) -> None:
        sealed = [path for path in manifest.checkpoints(run_folder) if manifest.is_sealed(path)]
        best = {self._write_best(run_folder, sealed), Path(self.state.best_model_checkpoint or "")}
        for path in sealed[:-keep]:
            if path not in best:
                # The seal goes first: what is half deleted must not look whole.
                (path / manifest.MANIFEST).unlink()
                shutil.rmtree(path)

    def _write_best(self, run_folder: Path, sealed: list[Path]) -> Path | None:
        """The checkpoint with the highest held-out accuracy, the oldest of equals, named in best.json; None without evaluation.

        Only a checkpoint of a step that was evaluated can be it.
        """
        evaluations = [entry for entry in self.state.log_history if entry.get("eval_accuracy") is not None]
        best: tuple[float, Path] | None = None
        for path in sealed:
            found = [e["eval_accuracy"] for e in evaluations if e["step"] == int(path.name.split("-")[1])]
            if found and (best is None or found[-1] > best[0]):
                best = found[-1], path
        if best is None:
            return None
        content = {"checkpoint": best[1].name, "eval_accuracy": best[0]}
        storage.write_text(run_folder / "best.json", json.dumps(content) + "\n")
        return best[1]


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(word in str(error).lower() for word in FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
