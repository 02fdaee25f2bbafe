"""How far the sampler's distribution is from the trainer's, and the weights that correct for it.

Axes: B = rows, C = completion tokens.
"""

from __future__ import annotations

import math

import torch


def importance_ratio(
    old_BC: torch.Tensor,
    sampling_BC: torch.Tensor,
    mask_BC: torch.Tensor,
    *,
    mode: str,
    low: float | None,
    high: float | None,
) -> torch.Tensor:
    """TRL's vLLM importance-sampling ratio exp(old - sampling): [B, C] in token modes, [B, 1] in sequence modes.

    A token whose sampling log-probability is NaN counts as equal. Truncating modes clamp to [low, high], masking modes put 0
    outside it. Source: TRL 1.16 GRPOTrainer._generate_and_score_completions, which computes it from a pass of its own.
    """
    difference = torch.nan_to_num((old_BC - sampling_BC) * mask_BC, nan=0.0)
    ratio = torch.exp(difference.sum(-1, keepdim=True) if mode.startswith("sequence") else difference)
    if mode.endswith("truncate"):
        return torch.clamp(ratio, min=low, max=high) if low is not None or high is not None else ratio
    is_outside = (ratio < (-math.inf if low is None else low)) | (ratio > (math.inf if high is None else high))
    return ratio.masked_fill(is_outside, 0.0)


def summary(values: torch.Tensor) -> torch.Tensor:
    """(sum, count, min, max) of the values; of none, the extremes are infinite."""
    if not values.numel():
        return torch.tensor([0.0, 0.0, math.inf, -math.inf], device=values.device)
    values = values.float()
    return torch.stack(
        [values.sum(), torch.tensor(float(values.numel()), device=values.device), values.min(), values.max()]
    )
