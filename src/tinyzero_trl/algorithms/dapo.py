"""DAPO's shaping of the reward. Its advantages are GRPO's, its clipping and loss TRL's, its sampling trainer/dynamic_sampling.py.

Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import torch


def soft_overlong_penalty(lengths_N: torch.Tensor, *, max_length: int, num_soft: int) -> torch.Tensor:
    """0 up to max_length - num_soft tokens, from there linearly down to -1 at max_length; [N].

    lengths_N: tokens of each completion. Source: DAPO (arXiv 2503.14476), eq. 13, with L_max = max_length and L_cache = num_soft.
    """
    return ((max_length - num_soft - lengths_N) / num_soft).clamp(min=-1.0, max=0.0)
