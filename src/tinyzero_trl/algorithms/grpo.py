"""Group-relative policy optimisation. Axes: see tinyzero_trl.algorithms."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms.groups import zeroed

EPSILON = 1e-4
"""Added to the standard deviation, as TRL does."""


def advantages(rewards_PG: torch.Tensor, *, scale: str = "group") -> torch.Tensor:
    """(r - mean of the group) / (std + 1e-4); [P, G], exactly 0 in constant groups.

    scale: whose standard deviation (with Bessel's correction): `group`, `batch` (all completions), or `none` (not divided).
    Source: DeepSeekMath (arXiv 2402.03300), sec. 4.1.2; the same numbers as TRL 1.16's GRPOTrainer, bit for bit,
    where a group is not constant.
    """
    centred_PG = rewards_PG - torch.nanmean(rewards_PG, dim=1, keepdim=True)
    if scale == "group":
        centred_PG = centred_PG / (nan_std(rewards_PG, dim=1) + EPSILON)
    elif scale == "batch":
        centred_PG = centred_PG / (nan_std(rewards_PG.flatten(), dim=0) + EPSILON)
    return zeroed(centred_PG, rewards_PG=rewards_PG)


def nan_std(values: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Standard deviation of the values that are not NaN, with Bessel's correction, the dimension kept; NaN for fewer than two."""
    variance = torch.nanmean((values - torch.nanmean(values, dim=dim, keepdim=True)) ** 2, dim=dim, keepdim=True)
    num = (~values.isnan()).sum(dim=dim, keepdim=True)
    return torch.sqrt(variance * torch.where(num > 1, num / (num - 1), torch.nan))
