"""REINFORCE leave-one-out. Axes: see tinyzero_trl.algorithms."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms.groups import zeroed


def advantages(rewards_PG: torch.Tensor) -> torch.Tensor:
    """r less the mean reward of the other completions of its prompt, G / (G - 1) (r - mean); [P, G], 0 in constant groups.

    The baseline does not depend on the completion it is for, so the estimate of the gradient is unbiased.
    Source: Ahmadian et al. (arXiv 2402.14740), eq. 5; Kool et al. (2019).
    """
    num_scored_P1 = (~rewards_PG.isnan()).sum(dim=1, keepdim=True)
    others_PG = (torch.nansum(rewards_PG, dim=1, keepdim=True) - rewards_PG) / (num_scored_P1 - 1)
    return zeroed(rewards_PG - others_PG, rewards_PG=rewards_PG)
