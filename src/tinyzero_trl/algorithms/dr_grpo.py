"""Dr. GRPO: GRPO without the two divisions that bias it. Axes: see tinyzero_trl.algorithms."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms import grpo


def advantages(rewards_PG: torch.Tensor) -> torch.Tensor:
    """r - mean of the group; [P, G], exactly 0 in constant groups.

    Dividing by the group's standard deviation gives very easy and very hard problems more weight; it is left out. The loss divides
    by a constant in the place of each response's length (trainer.loss_type=dr_grpo), which favours long wrong responses.
    Source: Liu et al. (arXiv 2503.20783), sec. 3.
    """
    return grpo.advantages(rewards_PG, scale="none")
