"""REINFORCE leave-one-out. Axes: B = prompts, G = completions of each; NaN = a completion nothing scored."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms.groups import zeroed


def advantages(rewards_BG: torch.Tensor) -> torch.Tensor:
    """r less the mean reward of the other completions of its prompt, G / (G - 1) (r - mean); [B, G], 0 in constant groups.

    The baseline does not depend on the completion it is for, so the estimate of the gradient is unbiased.
    Source: Ahmadian et al. (arXiv 2402.14740), eq. 5; Kool et al. (2019).
    """
    num_scored_B1 = (~rewards_BG.isnan()).sum(dim=1, keepdim=True)
    others_BG = (torch.nansum(rewards_BG, dim=1, keepdim=True) - rewards_BG) / (num_scored_B1 - 1)
    return zeroed(rewards_BG - others_BG, rewards_BG=rewards_BG)
