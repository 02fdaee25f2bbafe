"""Rows of a scored batch: picked, joined, padded alike, and freed of columns that hold padding alone.

Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

Batch = dict[str, Any]
"""TRL's batch: tensors of B rows by name, and scalars."""


def concatenated(batches: list[Batch]) -> Batch:
    """The rows of equally wide batches in one; scalars are those of the first batch."""
    return {
        key: torch.cat([batch[key] for batch in batches]) if isinstance(value, torch.Tensor) and value.dim() else value
        for key, value in batches[0].items()
    }


def joined(batches: list[Batch], *, pad_token_id: int) -> Batch:
    """The rows of batches of any width with the same keys, padded as if they had been generated together.

    Masks, log-probabilities and the like are padded with 0.
    """
    batches = [batch for batch in batches if len(batch["completion_ids"])]
    widths = {side: [batch[f"{side}_ids"].shape[1] for batch in batches] for side in ("prompt", "completion")}
    together: Batch = {}
    for key in batches[0]:
        values = [batch[key] for batch in batches]
        fill = pad_token_id if key in ("prompt_ids", "completion_ids") else 0
        if key.startswith("prompt_"):
            values = [pad(value, (max(widths["prompt"]) - value.shape[1], 0), value=fill) for value in values]
        # A column of one number a row looks like this only where every completion has one token, and needs no padding then.
        elif all(
            value.dim() == 2 and value.shape[1] == width
            for value, width in zip(values, widths["completion"], strict=True)
        ):
            values = [pad(value, (0, max(widths["completion"]) - value.shape[1]), value=fill) for value in values]
        together[key] = torch.cat(values)
    return together


def take(batch: Batch, rows: torch.Tensor) -> Batch:
    """The given rows; values that are not one a row stay as they are."""
    num_rows = len(batch["completion_ids"])
    return {key: value[rows] if is_per_row(value, num_rows=num_rows) else value for key, value in batch.items()}


def rows_of(batch: Batch, rows: torch.Tensor) -> Batch:
    """The given rows alone, by row numbers or a mask [B]; values that are not one a row are left out."""
    num_rows = len(batch["completion_ids"])
    return {key: value[rows] for key, value in batch.items() if is_per_row(value, num_rows=num_rows)}


def is_per_row(value: Any, *, num_rows: int) -> bool:
    """True for a tensor with an entry for each row."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == num_rows


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
    """The rows and one more, the last, with one prompt and one completion token and advantage 0: a pass over it changes nothing."""
    longer = concatenated([batch, take(batch, torch.zeros(1, dtype=torch.long, device=batch["completion_ids"].device))])
    longer["prompt_mask"][-1, :-1] = 0
    longer["prompt_mask"][-1, -1] = 1
    longer["completion_mask"][-1] = 0
    longer["completion_mask"][-1, 0] = 1
    longer["advantages"][-1] = 0
    if "sampling_per_token_logps" in longer:
        longer["sampling_per_token_logps"][-1] = torch.nan  # TRL's "unknown": ratio 1, and in no average
    return longer


def loss_mask(batch: Batch) -> torch.Tensor:
    """True for the tokens that the policy drew and the loss is about; bool, [B, T]."""
    mask_BT: torch.Tensor = batch["completion_mask"].bool()
    return mask_BT & batch["tool_mask"].bool() if "tool_mask" in batch else mask_BT


def groups_with_signal(advantages: torch.Tensor, *, num_generations: int) -> torch.Tensor:
    """True for a group that has a completion whose advantage is not 0; bool, [number of groups], from [B] or [B, T]."""
    return (advantages != 0).view(len(advantages) // num_generations, -1).any(1)


def rows_in(groups: torch.Tensor, *, num_generations: int) -> torch.Tensor:
    """The row numbers of the given groups, in order."""
    offsets = torch.arange(num_generations, device=groups.device)
    return (groups[:, None] * num_generations + offsets).flatten()
