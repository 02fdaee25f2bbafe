"""Optimizer steps whose loss or gradient is not finite: left out, counted, and their batch kept for whoever looks for the reason."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tinyzero_trl import storage
from tinyzero_trl.failures import NumericFailure

logger = logging.getLogger(__name__)
FOLDER = "faults"
MAX_SKIPPED = 3
"""Optimizer steps in a row with a loss or gradient that is not finite after which a run stops."""
MAX_RECORDS = 6
"""Steps of which a process keeps the batch; a run that goes wrong again and again must not fill the disk."""
MAX_NAMES = 20
"""Parameters named as having a gradient that is not finite."""


class NonFiniteSteps:
    """Counts the steps that are left out, and ends a run that has too many in a row."""

    def __init__(self) -> None:
        self.num_skipped = 0
        """In a row."""
        self.hides_loss = False
        """The loss that is logged next is the mean of earlier ones, which transformers puts in the place of one that is not finite."""

    def judge(
        self,
        grad_norm: float,
        losses: Sequence[tuple[dict[str, Any], torch.Tensor]],
        *,
        model: torch.nn.Module,
        run: Path,
        step: int,
        accelerator: Any,
        tokenizer: Any,
    ) -> bool:
        """True where the step may be taken; otherwise its batch is written to the run folder, on each process its own.

        losses: each micro-batch of the step with its loss. Call `check` once the gradients are gone.
        """
        if math.isfinite(grad_norm):
            self.num_skipped = 0
            return True
        self.num_skipped += 1
        values = [loss.item() for _, loss in losses]
        has_bad_loss = torch.tensor(float(not all(map(math.isfinite, values))), device=accelerator.device)
        self.hides_loss |= bool(accelerator.reduce(has_bad_loss, reduction="sum").item())
        written = write_bad_step(
            run,
            [batch for batch, _ in losses],
            step=step,
            rank=accelerator.process_index,
            losses=values,
            grad_norm=grad_norm,
            parameters=not_finite_gradients(model),
            tokenizer=tokenizer,
        )
        logger.warning(
            "step %d is left out: %s is not finite (%d in a row; the run stops at %d)%s",
            step,
            "the loss" if self.hides_loss else "the gradient",
            self.num_skipped,
            MAX_SKIPPED,
            f"; its batch is in {written}" if written else "",
        )
        return False

    def check(self, *, step: int, run: Path) -> None:
        """Raises: NumericFailure after too many steps in a row."""
        if self.num_skipped >= MAX_SKIPPED:
            raise NumericFailure(
                f"loss or gradient was not finite in {MAX_SKIPPED} steps in a row, up to step {step}; "
                f"the weights are those from before, and the batches are in {run}/{FOLDER}; "
                "lower trainer.learning_rate, set trainer.max_grad_norm, or train in bf16 or float32"
            )

    def state(self) -> dict[str, Any]:
        """The counter, by the name that saved files have for it."""
        return {"_num_skipped": self.num_skipped}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.num_skipped = state.get("_num_skipped", 0)


def nan_where_not_finite(loss: torch.Tensor) -> torch.Tensor:
    """The loss, made NaN where it is infinite.

    An infinite loss may have a finite gradient on one process. As NaN it reaches the gradient's norm, on which all processes agree.
    DeepSpeed steps inside backward, and leaves its step out where that norm is not a number.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def write_bad_step(
    run: Path,
    chunks: Sequence[dict[str, Any]],
    *,
    step: int,
    rank: int,
    losses: Sequence[float],
    grad_norm: float,
    parameters: Sequence[str],
    tokenizer: Any,
) -> Path | None:
    """Write `faults/non-finite-step-<step>-rank-<rank>.safetensors`, and .json beside it; returns the path, None where nothing was written.

    chunks: what the loss of each micro-batch was computed from; its tensors are kept as `<chunk>/<name>`. The .json has
    the texts, the losses and what was not finite. A full disk or the limit of records does not end training.
    """
    folder = run / FOLDER
    target = folder / f"non-finite-step-{step}-rank-{rank}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if len(list(folder.glob(f"non-finite-step-*-rank-{rank}.safetensors"))) >= MAX_RECORDS:
            return None
        tensors = {
            f"{index}/{name}": value.detach().cpu().contiguous().clone()
            for index, chunk in enumerate(chunks)
            for name, value in chunk.items()
            if isinstance(value, torch.Tensor)
        }
        with storage.replacing(target) as file:
            save_file(tensors, file.name)
        record = {
            "step": step,
            "rank": rank,
            "losses": [_number(loss) for loss in losses],
            "grad_norm": _number(grad_norm),
            "tensors_not_finite": [
                name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()
            ],
            "gradients_not_finite": list(parameters[:MAX_NAMES]),
            "texts": [texts(chunk, tokenizer) for chunk in chunks],
        }
        storage.write_text(target.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=True))
    except OSError as error:
        logger.warning("%s: %s", target, error)
        return None
    return target


def texts(chunk: dict[str, Any], tokenizer: Any) -> list[dict[str, str]]:
    """Prompt and completion of each row of a micro-batch, without padding."""
    return [
        {
            part: tokenizer.decode(chunk[f"{part}_ids"][row][chunk[f"{part}_mask"][row].bool()])
            for part in ("prompt", "completion")
        }
        for row in range(len(chunk["completion_ids"]))
    ]


def not_finite_gradients(model: torch.nn.Module) -> list[str]:
    """Names of the parameters whose gradient is there and not finite; none where DeepSpeed keeps the gradients."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
