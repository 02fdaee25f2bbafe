"""Micro-batches without work whose result is known to be zero: padding, and rows that carry no gradient.

Axes: b = rows of a micro-batch, P = prompt tokens (padded on the left), C = completion tokens (padded on the right).
"""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer

# Losses that are a sum or a mean over rows, by what a row that is left out does to the value: these divide by the number of rows ...
MEAN_OVER_ROWS = ("grpo", "dr_grpo", "sapo", "luspo")
# ... and these by a token count of the whole generation batch, which does not change. bnpo divides by the tokens of the micro-batch: left alone.
SUM_OVER_TOKENS = ("dapo", "cispo", "vespo")


def take(batch: dict[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """The given rows of a micro-batch; what is not one value per row stays as it is."""
    size = len(batch["completion_ids"])
    return {
        key: value[rows] if isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == size else value
        for key, value in batch.items()
    }


def trim(batch: dict[str, Any]) -> dict[str, Any]:
    """The same rows without columns in which every row is padding."""
    num_prompt, num_completion = batch["prompt_ids"].size(1), batch["completion_ids"].size(1)
    longest_prompt = max(int(batch["prompt_mask"].sum(1).max()), 1)
    # A truncated completion that is masked out has no column of its own; one column stays where no row has any.
    used_C = batch["completion_mask"].any(0).nonzero()
    longest_completion = int(used_C.max()) + 1 if len(used_C) else 1
    trimmed = {}
    for key, value in batch.items():
        is_per_token = isinstance(value, torch.Tensor) and value.dim() == 2
        if is_per_token and key.startswith("prompt_"):
            value = value[:, num_prompt - longest_prompt :]
        elif is_per_token and value.size(1) == num_completion:
            value = value[:, :longest_completion]
        trimmed[key] = value
    return trimmed


def deal_by_length(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of equally wide slices, shortest completions first, in as many slices of the same sizes, each trimmed."""
    whole = {
        key: torch.cat([part[key] for part in slices]) if isinstance(value, torch.Tensor) and value.dim() > 0 else value
        for key, value in slices[0].items()
    }
    order = whole["completion_mask"].sum(1).argsort(stable=True)
    return [trim(take(whole, rows)) for rows in order.split([len(part["completion_ids"]) for part in slices])]


class Batching(GRPOTrainer):
    """Deals the rows of each optimizer step into micro-batches of like length and leaves out rows without advantage.

    The gradient of the optimizer step is TRL's up to rounding: each row keeps its weight, whichever micro-batch it is in. Text only; where the
    loss has terms that do not pass through the advantage, or rows of several processes would get out of step, it does nothing.
    """

    _buffered_inputs: list[dict[str, Any]] | None

    def _may_deal(self) -> bool:
        accumulation = self.args.gradient_accumulation_steps
        return (
            not self._is_vlm
            and self.loss_type in (*MEAN_OVER_ROWS, *SUM_OVER_TOKENS)
            and self.top_entropy_quantile == 1.0
            and not self._entropy_bonus_enabled
            and not self.aux_loss_enabled
            and self.args.steps_per_generation % accumulation == 0
        )

    def _may_drop(self) -> bool:
        # Each process must make the same calls: rows are dropped only where there is one.
        return self._may_deal() and self.beta == 0.0 and self.accelerator.num_processes == 1

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before or not self._may_deal():
            return inputs
        window = self.args.gradient_accumulation_steps
        slices = self._buffered_inputs
        assert slices is not None
        self._buffered_inputs = [
            dealt for start in range(0, len(slices), window) for dealt in deal_by_length(slices[start : start + window])
        ]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.model.training or not self._may_drop():
            return super()._compute_loss(model, inputs)
        kept = inputs["advantages"].reshape(len(inputs["advantages"]), -1).any(1).nonzero()[:, 0]
        num_rows = len(inputs["advantages"])
        if len(kept) == num_rows:
            return super()._compute_loss(model, inputs)
        # One row stays where none has an advantage: a backward pass must happen, and its gradient is zero.
        kept = kept if len(kept) else torch.zeros(1, dtype=torch.long, device=kept.device)
        loss = super()._compute_loss(model, trim(take(inputs, kept)))
        return loss * (len(kept) / num_rows) if self.loss_type in MEAN_OVER_ROWS else loss
