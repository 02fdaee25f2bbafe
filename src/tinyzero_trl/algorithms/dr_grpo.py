"""Dr. GRPO: GRPO without the two divisions that bias it. Axes: B = prompts, G = completions of each."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms import grpo


def advantages(rewards_BG: torch.Tensor) -> torch.Tensor:
    """r - mean of the group; [B, G], exactly 0 in constant groups.

    Not divided by the group's standard deviation, which weighs very easy and very hard problems up; the loss divides by a
    constant in the place of each response's length (trainer.loss_type=dr_grpo), which favours long wrong responses.
    Source: Liu et al. (arXiv 2503.20783), sec. 3.
    """
    return grpo.advantages(rewards_BG, scale="none")
