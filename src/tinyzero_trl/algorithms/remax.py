"""ReMax: the reward of the greedy response is the baseline. Axes: B = prompts, G = completions of each."""

from __future__ import annotations

import torch


def advantages(rewards_BG: torch.Tensor, *, greedy_B: torch.Tensor) -> torch.Tensor:
    """r less the reward of the prompt's greedy response; [B, G], 0 where either was not scored.

    A group that earns nothing but what the greedy response earns is without signal; one that is constant and does not, has it.
    Source: Li et al. (arXiv 2310.10505), algorithm 2.
    """
    return (rewards_BG - greedy_B[:, None]).nan_to_num(nan=0.0)
