"""Estimators with a group baseline share these. Axes: see tinyzero_trl.algorithms."""

from __future__ import annotations

import torch


def is_constant(rewards_PG: torch.Tensor) -> torch.Tensor:
    """True where all scored completions of a prompt have the same reward, also where one or none is scored; bool, [P]."""
    high = torch.where(rewards_PG.isnan(), -torch.inf, rewards_PG).amax(dim=1)
    low = torch.where(rewards_PG.isnan(), torch.inf, rewards_PG).amin(dim=1)
    return high <= low


def zeroed(advantages_PG: torch.Tensor, *, rewards_PG: torch.Tensor) -> torch.Tensor:
    """The advantages, exactly 0 in constant groups and where nothing was scored.

    A float32 mean often differs from the constant it is the mean of (eight times 0.1 leave -7.5e-5 after scaling).
    Adam divides by the size of the gradient and turns that difference into full-size steps.
    """
    return torch.where(is_constant(rewards_PG)[:, None], 0.0, advantages_PG).nan_to_num(nan=0.0)
