"""What estimators with a group baseline share. Axes: B = prompts, G = completions of each; NaN = a completion nothing scored."""

from __future__ import annotations

import torch


def is_constant(rewards_BG: torch.Tensor) -> torch.Tensor:
    """Whether all scored completions of a prompt have one and the same reward, also where none or one is scored; bool, [B]."""
    high = torch.where(rewards_BG.isnan(), -torch.inf, rewards_BG).amax(dim=1)
    low = torch.where(rewards_BG.isnan(), torch.inf, rewards_BG).amin(dim=1)
    return high <= low


def zeroed(advantages_BG: torch.Tensor, *, rewards_BG: torch.Tensor) -> torch.Tensor:
    """The advantages, exactly 0 in constant groups and where nothing was scored.

    A float32 mean is often not exactly the constant it is the mean of (eight times 0.1 leave -7.5e-5 after scaling),
    and Adam, blind to scale, turns the difference into full-size steps.
    """
    return torch.where(is_constant(rewards_BG)[:, None], 0.0, advantages_BG).nan_to_num(nan=0.0)
