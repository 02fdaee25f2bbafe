"""ReMax: the reward of the greedy response is the baseline. Axes: see tinyzero_trl.algorithms."""

from __future__ import annotations

import torch


def advantages(rewards_PG: torch.Tensor, *, greedy_P: torch.Tensor) -> torch.Tensor:
    """r less the reward of the prompt's greedy response; [P, G], 0 where either was not scored.

    A group in which every response earns what the greedy one earns is without signal. A constant group that earns more or less has signal.
    Source: Li et al. (arXiv 2310.10505), algorithm 2.
    """
    return (rewards_PG - greedy_P[:, None]).nan_to_num(nan=0.0)
