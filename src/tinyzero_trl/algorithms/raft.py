"""RAFT: imitate the best completion of each prompt. Axes: see tinyzero_trl.algorithms."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms.groups import is_constant


def advantages(rewards_PG: torch.Tensor, *, lengths_PG: torch.Tensor) -> torch.Tensor:
    """1 for the best completion of each prompt, 0 for the others; [P, G].

    Among several best ones it is the shortest, then the first. A constant group has no best: RAFT would imitate a draw from the
    policy itself there, and nothing is learned. With one update a batch the ratio is 1, and the loss is that of the log-likelihood.
    lengths_PG: tokens of each completion. Source: Dong et al. (arXiv 2304.06767), algorithm 1.
    """
    scored_PG = torch.where(rewards_PG.isnan(), -torch.inf, rewards_PG)
    is_best_PG = scored_PG == scored_PG.amax(dim=1, keepdim=True)
    best_P = torch.where(is_best_PG, lengths_PG, torch.iinfo(lengths_PG.dtype).max).argmin(dim=1)
    one_hot_PG = torch.nn.functional.one_hot(best_P, rewards_PG.size(1)).to(rewards_PG.dtype)
    return torch.where(is_constant(rewards_PG)[:, None], 0.0, one_hot_PG)
