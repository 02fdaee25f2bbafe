"""A forward pass without padding: the rows end to end in one, each with positions of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class Packed:
    """Stands in for a model in TRL's log-probability pass: padded rows in, padded log-probabilities out, no padding computed.

    Attention keeps to each row because its positions start again at 0: flash attention takes row ends from that, and transformers
    builds a block mask from it elsewhere (masking_utils.find_packed_sequence_indices), at the cost that packing is to save.
    """

    def __init__(self, model: Any):
        self.model = model

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: Any
    ) -> Any:
        """input_ids, attention_mask, labels: [B, L]. Returns what has `log_probs` and `entropy`, [B, L - 1], of the tokens after a row's first; 0 at padding."""
        is_real = attention_mask.bool()
        positions = attention_mask.long().cumsum(1) - 1
        # The model predicts a row's first token from the row before it. That token has no label: it is the prompt's.
        packed = self.model(
            input_ids=input_ids[is_real][None],
            position_ids=positions[is_real][None],
            labels=labels[is_real][None],
            use_cache=False,
            **options,
        )

        def padded(values: torch.Tensor | None) -> torch.Tensor | None:
            if values is None:
                return None
            of_each_token = torch.nn.functional.pad(values[0], (1, 0))  # nothing predicts the first token
            return of_each_token.new_zeros(is_real.shape).masked_scatter(is_real, of_each_token)[:, 1:]

        return SimpleNamespace(log_probs=padded(packed.log_probs), entropy=padded(getattr(packed, "entropy", None)))
