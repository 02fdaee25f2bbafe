"""The batch of an optimizer step that was not finite, kept in the run folder for whoever looks for the reason."""

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

logger = logging.getLogger(__name__)
FOLDER = "faults"
MAX_RECORDS = 6
"""Steps of which a process keeps the batch; a run that goes wrong again and again must not fill the disk."""
MAX_NAMES = 20
"""Parameters named as having a gradient that is not finite."""


def write_fault(
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
    """Write `faults/non-finite-step-<step>-rank-<rank>.safetensors`, and .json beside it; the path, None where it did not.

    chunks: what the loss of each micro-batch was computed from; its tensors are kept as `<chunk>/<name>`. The .json has
    the texts, the losses and what was not finite. A full disk or the limit of records is no reason to end training.
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
    """The parameters whose gradient is there and not finite; where DeepSpeed keeps gradients, none is there."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
