"""Rows of several generated batches in one: padded alike, as if they had been generated together.

Axes: B = rows, P = prompt tokens (padded on the left), C = completion tokens (padded on the right).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from tinyzero_trl.trainer.columns import Batch


def is_per_row(value: Any, *, num_rows: int) -> bool:
    """Whether a value of a batch has an entry for each row."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == num_rows


def rows_of(batch: Batch, rows: torch.Tensor) -> Batch:
    """The given rows alone, [.] of row numbers or [B] of bool, with what is not one value a row left out."""
    num_rows = len(batch["completion_ids"])
    return {key: value[rows] for key, value in batch.items() if is_per_row(value, num_rows=num_rows)}


def joined(batches: list[Batch], *, pad_token_id: int) -> Batch:
    """The rows of batches with the same keys, one below the other; masks, log-probabilities and the like are padded with 0."""
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


def num_loss_tokens(batch: Batch) -> torch.Tensor:
    """Tokens of these rows that the loss is about, a scalar."""
    mask: torch.Tensor = batch["completion_mask"]
    return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).sum()


def groups_with_signal(advantages: torch.Tensor, *, num_generations: int) -> torch.Tensor:
    """Whether a group has a completion whose advantage is not 0; [number of groups], from [B] or [B, C]."""
    return (advantages != 0).view(len(advantages) // num_generations, -1).any(1)


def rows_in(groups: torch.Tensor, *, num_generations: int) -> torch.Tensor:
    """The row numbers of the given groups, in order."""
    offsets = torch.arange(num_generations, device=groups.device)
    return (groups[:, None] * num_generations + offsets).flatten()
