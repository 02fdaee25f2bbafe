"""PPO's numbers: rewards of tokens, generalised advantages and the clipped loss of the value model.

The value of a token is the value of the state before it. An episode ends with the last token, also where the length limit cut it:
its reward is there, and no value is bootstrapped, so that a response which does not end in time earns what it earned
(as in verl, TinyZero and Open-Reasoner-Zero). Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import torch


def advantages(
    rewards_B: torch.Tensor,
    *,
    kl_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    values_BT: torch.Tensor,
    gamma: float,
    lam: float,
) -> torch.Tensor:
    """Generalised advantages of every token before whitening, [B, T]; NaN in rows that nothing scored, 0 outside the mask."""
    rewards_BT = token_rewards(rewards_B, kl_BT=kl_BT, mask_BT=mask_BT)
    return gae(rewards_BT, values_BT=values_BT, mask_BT=mask_BT, gamma=gamma, lam=lam)


def token_rewards(rewards_B: torch.Tensor, *, kl_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Each completion's reward on its last token, less `kl_BT` (already times beta) on every token; [B, T].

    mask_BT: bool, the tokens that the policy drew; a row may have none.
    Source: InstructGPT (arXiv 2203.02155), eq. 2, per token as in Ziegler et al. (arXiv 1909.08593), sec. 2.
    """
    is_last_BT = mask_BT & (mask_BT.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(is_last_BT, rewards_B[:, None], 0.0) - torch.where(mask_BT, kl_BT, 0.0)


def gae(
    rewards_BT: torch.Tensor, *, values_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float, lam: float
) -> torch.Tensor:
    """sum_k (gamma lam)^k delta_{t+k} with delta_t = r_t + gamma V_{t+1} - V_t, over the tokens in the mask; [B, T], 0 elsewhere.

    Tokens outside the mask (padding, what a tool wrote) are not steps: the token after them follows the one before them.
    The value model learns towards the advantage plus the value. Source: Schulman et al. (arXiv 1506.02438), eq. 16.
    """
    next_value_B = torch.zeros_like(rewards_BT[:, 0])
    advantage_B = torch.zeros_like(next_value_B)
    advantages_BT = torch.zeros_like(rewards_BT)
    for t in reversed(range(rewards_BT.size(1))):
        is_step_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = torch.where(is_step_B, delta_B + gamma * lam * advantage_B, advantage_B)
        next_value_B = torch.where(is_step_B, values_BT[:, t], next_value_B)
        advantages_BT[:, t] = torch.where(is_step_B, advantage_B, 0.0)
    return advantages_BT


def value_loss(
    values_BT: torch.Tensor, *, old_values_BT: torch.Tensor, returns_BT: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2 of every token, any shape.

    Source: OpenAI's PPO2 (baselines/ppo2/model.py); verl's and TRL's compute_value_loss are the same.
    """
    clipped_BT = values_BT.clamp(old_values_BT - clip_range, old_values_BT + clip_range)
    return torch.maximum((values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2) / 2
