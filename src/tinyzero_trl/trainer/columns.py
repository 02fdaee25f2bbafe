"""Rows of a scored batch picked, and columns in which all of them are padding cut off.

Axes: B = rows, P = prompt tokens (padded on the left), C = completion tokens (padded on the right).
"""

from __future__ import annotations

from typing import Any

import torch

Batch = dict[str, Any]
"""TRL's batch: tensors of B rows by name, and scalars."""


def join(batches: list[Batch]) -> Batch:
    """The rows of equally wide batches in one; scalars are the first one's."""
    return {
        key: torch.cat([batch[key] for batch in batches]) if isinstance(value, torch.Tensor) and value.dim() else value
        for key, value in batches[0].items()
    }


def take(batch: Batch, rows: torch.Tensor) -> Batch:
    """The given rows; what is not one value per row stays as it is."""
    size = len(batch["completion_ids"])
    return {
        key: value[rows] if isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == size else value
        for key, value in batch.items()
    }


def lengths(batch: Batch) -> torch.Tensor:
    """Prompt and completion columns that each row needs; [B, 2], at least 1.

    A truncated completion that is masked out needs no column of its own, and keeps one.
    """
    columns = torch.arange(1, batch["completion_mask"].size(1) + 1, device=batch["completion_mask"].device)
    num_completion = (batch["completion_mask"].ne(0) * columns).amax(1)
    return torch.stack([batch["prompt_mask"].sum(1), num_completion], dim=1).clamp(min=1)


def trim(batch: Batch) -> Batch:
    """The same rows without columns in which every row is padding."""
    num_prompt, num_completion = batch["prompt_ids"].size(1), batch["completion_ids"].size(1)
    longest_prompt, longest_completion = lengths(batch).amax(0).tolist()
    trimmed = {}
    for key, value in batch.items():
        is_per_token = isinstance(value, torch.Tensor) and value.dim() >= 2
        if is_per_token and key.startswith("prompt_"):
            value = value[:, num_prompt - longest_prompt :]
        elif is_per_token and value.size(1) == num_completion:
            value = value[:, :longest_completion]
        trimmed[key] = value
    return trimmed


def with_dummy(batch: Batch) -> Batch:
    """The rows and one more, the last, which has one prompt and one completion token and advantage 0: a pass that changes nothing."""
    longer = join([batch, take(batch, torch.zeros(1, dtype=torch.long, device=batch["completion_ids"].device))])
    longer["prompt_mask"][-1, :-1] = 0
    longer["prompt_mask"][-1, -1] = 1
    longer["completion_mask"][-1] = 0
    longer["completion_mask"][-1, 0] = 1
    longer["advantages"][-1] = 0
    if "sampling_per_token_logps" in longer:
        longer["sampling_per_token_logps"][-1] = torch.nan  # TRL's "unknown": ratio 1, and in no average
    return longer
