"""Whether a completion ended by itself: by a token that ends it, or by a stop string; TRL knows the tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl import GRPOTrainer

from tinyzero_trl.models import StopStrings, is_truncated
from tinyzero_trl.trainer.merging import num_loss_tokens


class Stopping(GRPOTrainer):
    """TRL's metrics of truncation and its `mask_truncated_completions`, with stop strings as ends; all TRL's own without any."""

    stop_strings: StopStrings | None = None

    def __init__(self, *args: Any, stop: Sequence[str] = (), **kwargs: Any):
        """stop: strings that end a completion (`generation.stop`)."""
        super().__init__(*args, **kwargs)
        self._masks_truncated = bool(stop) and self.args.mask_truncated_completions
        if stop:
            self.stop_strings = StopStrings(stop, self._tokenizer)
            self.mask_truncated_completions = False  # by last token; below it is done by `is_truncated`

    def is_truncated(self, ids: Sequence[int]) -> bool:
        """Whether a completion has no end of its own: it ran into the token limit."""
        return is_truncated(ids, ends=self._ends, stop=self.stop_strings)

    @property
    def _ends(self) -> tuple[int, ...]:
        return (*self.eos_token_ids, self._tokenizer.pad_token_id)

    def _generate(self, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        if self.stop_strings is None:
            return generated
        metrics = self._metrics["train" if self.model.training else "eval"]
        measured = [[len(ids), self.is_truncated(ids), ids[-1] not in self._ends] for ids in generated[1]]
        gathered = self.accelerator.gather(torch.tensor(measured, device=self.accelerator.device))
        lengths, is_truncated, has_no_eos = gathered[:, 0].float(), gathered[:, 1].bool(), gathered[:, 2].bool()
        ended = lengths[~is_truncated] if not is_truncated.all() else torch.zeros(1)
        metrics["completions/clipped_ratio"][-1] = is_truncated.float().mean().item()
        metrics["completions/mean_terminated_length"][-1] = ended.mean().item()
        metrics["completions/min_terminated_length"][-1] = ended.min().item()
        metrics["completions/max_terminated_length"][-1] = ended.max().item()
        metrics["completions/stopped_ratio"].append((has_no_eos & ~is_truncated).float().mean().item())
        return generated

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._masks_truncated:
            mask_BC = scored["completion_mask"]
            for row, (ids, length) in enumerate(
                zip(scored["completion_ids"].tolist(), mask_BC.sum(1).tolist(), strict=True)
            ):
                if self.is_truncated(ids[:length]):
                    mask_BC[row] = 0
            scored["num_items_in_batch"] = self.accelerator.gather(num_loss_tokens(scored)).sum()
        return scored
