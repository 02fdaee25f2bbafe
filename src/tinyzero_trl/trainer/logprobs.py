"""Log-probabilities read off the loss's own forward pass where they can be, and the weights that correct for the sampler's.

A chunk (microbatches.py) says with `is_old_known` whether it holds `old_per_token_logps`. Where it does not, the policy has not
changed since its rollouts, and the loss's own log-probabilities are the old ones. Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from tinyzero_trl.trainer.batches import Batch, loss_mask, take, trim
from tinyzero_trl.trainer.microbatches import Cut


def in_chunks(batch: Batch, cut: Cut, logps_of: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of the batch by `logps_of`, computed chunk by chunk; [B, T], 0 at padding."""
    logps_BT = torch.zeros(batch["completion_ids"].shape, device=batch["completion_ids"].device)
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    for rows, _ in cut.chunks():
        part = trim(take({key: batch[key] for key in keys}, rows))
        logps_BT[rows, : part["completion_ids"].size(1)] = logps_of(part).float()
    return logps_BT


def keep_old(chunk: Batch, now_BT: torch.Tensor) -> None:
    """Write the policy's log-probabilities of now into the chunk as those of the old policy."""
    if "is_replayed" in chunk:  # another policy wrote those rows, and its log-probabilities are there
        now_BT = torch.where(chunk["is_replayed"].bool().unsqueeze(1), chunk["old_per_token_logps"], now_BT)
    chunk["old_per_token_logps"], chunk["is_old_known"] = now_BT, True


def fold(chunk: Batch, now_BT: torch.Tensor, *, is_reused: bool, ratio: dict[str, Any] | None) -> torch.Tensor | None:
    """Write into a chunk what TRL's loss reads after its forward pass, and computes in a pass of its own before.

    now_BT: log-probabilities of the loss's own pass, detached. is_reused: later iterations compare with them. ratio: arguments of
    `importance_ratio`, None without correction. Returns |old - sampling| of each token, [B, T], on the chunk's first pass; None otherwise.
    """
    if not chunk["is_fresh"]:
        return None
    chunk["is_fresh"] = False
    if not chunk["is_old_known"] and (is_reused or "is_replayed" in chunk):
        keep_old(chunk, now_BT)
    if "sampling_per_token_logps" not in chunk:
        return None
    old_BT, sampling_BT = chunk.get("old_per_token_logps", now_BT), chunk["sampling_per_token_logps"]
    if ratio is not None:
        mask_BT = chunk["completion_mask"] * chunk.get("tool_mask", 1)
        chunk["importance_sampling_ratio"] = importance_ratio(old_BT, sampling_BT, mask_BT, **ratio)
    return (old_BT - sampling_BT).abs()


def importance_ratio(
    old_BT: torch.Tensor,
    sampling_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    mode: str,
    low: float | None,
    high: float | None,
) -> torch.Tensor:
    """TRL's vLLM importance-sampling ratio exp(old - sampling): [B, T] in token modes, [B, 1] in sequence modes.

    A token whose sampling log-probability is NaN counts as equal. Truncating modes clamp to [low, high], masking modes put 0
    outside it. Source: TRL 1.16 GRPOTrainer._generate_and_score_completions, which computes it from a pass of its own.
    """
    difference = torch.nan_to_num((old_BT - sampling_BT) * mask_BT, nan=0.0)
    ratio = torch.exp(difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference)
    if mode.endswith("truncate"):
        return torch.clamp(ratio, min=low, max=high) if low is not None or high is not None else ratio
    is_outside = (ratio < (-math.inf if low is None else low)) | (ratio > (math.inf if high is None else high))
    return ratio.masked_fill(is_outside, 0.0)


def sampling_metrics(
    chunk: Batch, gap_BT: torch.Tensor, *, gather: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, float]:
    """TRL's sampling/* metrics, weighted by token, over the tokens whose sampling log-probability is known.

    Dummies have none. Rows that came again are left out: their old policy is their sampler.
    """
    known_BT = loss_mask(chunk) & ~gap_BT.isnan()
    if "is_replayed" in chunk:
        known_BT = known_BT & ~chunk["is_replayed"].bool()[:, None]
    values = {"sampling_logp_difference": gap_BT[known_BT]}
    if "importance_sampling_ratio" in chunk:
        ratio = chunk["importance_sampling_ratio"]
        values["importance_sampling_ratio"] = (
            ratio[known_BT] if ratio.shape == known_BT.shape else ratio[known_BT.any(1)].flatten()
        )
    totals = gather(torch.stack([summary(value) for value in values.values()])[None])
    found = {}
    for index, name in enumerate(values):
        total, count = totals[:, index, 0].sum().item(), totals[:, index, 1].sum().item()
        if not count:
            continue
        found[f"sampling/{name}/mean"] = total / count
        found[f"sampling/{name}/max"] = totals[:, index, 3].max().item()
        if name == "importance_sampling_ratio":
            found[f"sampling/{name}/min"] = totals[:, index, 2].min().item()
    return found


def summary(values: torch.Tensor) -> torch.Tensor:
    """(sum, count, min, max) of the values; the extremes of none are infinite."""
    if not values.numel():
        return torch.tensor([0.0, 0.0, math.inf, -math.inf], device=values.device)
    values = values.float()
    return torch.stack(
        [values.sum(), torch.tensor(float(values.numel()), device=values.device), values.min(), values.max()]
    )


class Packed:
    """Stands in for a model in TRL's log-probability pass: padded rows in, padded log-probabilities out, no padding computed.

    The rows lie end to end in one, each with positions of its own. Attention keeps to each row because its positions start again
    at 0: flash attention takes row ends from that, and transformers builds a block mask from it elsewhere
    (masking_utils.find_packed_sequence_indices), at the cost that packing is to save.
    """

    def __init__(self, model: Any):
        self.model = model

    def __call__(
        self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **options: Any
    ) -> Any:
        """An object with `log_probs` and `entropy`, [B, L - 1], of the tokens after a row's first; 0 at padding. Arguments are [B, L]."""
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
