"""RAFT: imitate the best completion of each prompt. Axes: B = prompts, G = completions of each; NaN = one that nothing scored."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms.groups import is_constant


def advantages(rewards_BG: torch.Tensor, *, lengths_BG: torch.Tensor) -> torch.Tensor:
    """1 for the best completion of each prompt, 0 for the others; [B, G].

    Of several that are best, the shortest, then the first. A constant group has no best: there, where RAFT would imitate a draw
    from the policy itself, nothing is learned. With one update a batch the ratio is 1 and the loss is the log-likelihood's.
    lengths_BG: tokens of each completion. Source: Dong et al. (arXiv 2304.06767), algorithm 1.
    """
    scored_BG = torch.where(rewards_BG.isnan(), -torch.inf, rewards_BG)
    is_best_BG = scored_BG == scored_BG.amax(dim=1, keepdim=True)
    best_B = torch.where(is_best_BG, lengths_BG, torch.iinfo(lengths_BG.dtype).max).argmin(dim=1)
    one_hot_BG = torch.nn.functional.one_hot(best_B, rewards_BG.size(1)).to(rewards_BG.dtype)
    return torch.where(is_constant(rewards_BG)[:, None], 0.0, one_hot_BG)
