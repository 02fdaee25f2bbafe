"""REINFORCE++: rewards of tokens, summed from each token on, normalised over the whole batch. Axes: see tinyzero_trl.algorithms."""

from __future__ import annotations

import torch

from tinyzero_trl.algorithms.ppo import token_rewards


def advantages(rewards_B: torch.Tensor, *, kl_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """sum over t' >= t of (reward at the last token - kl), before it is whitened over all tokens; [B, T], 0 outside the mask.

    kl_BT: beta times log(pi_old / pi_ref) of each token; without it every token has the completion's reward. A completion that
    nothing scored (NaN) has 0. Source: Hu (arXiv 2501.03262), eq. 6 to 8 (gamma = 1).
    """
    rewards_BT = token_rewards(rewards_B, kl_BT=kl_BT, mask_BT=mask_BT)
    to_go_BT = rewards_BT.flip(1).cumsum(1).flip(1)
    return torch.where(mask_BT, to_go_BT, 0.0).nan_to_num(nan=0.0)
