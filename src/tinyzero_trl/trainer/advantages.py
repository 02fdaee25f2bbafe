"""From the rewards of a batch to its advantages, by the algorithm that the recipe names; the formulas are in algorithms/.

Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tinyzero_trl.algorithms import Algorithm
from tinyzero_trl.algorithms.groups import is_constant

EPSILON = 1e-8
"""Added to the deviation when whitening."""


@dataclass(frozen=True)
class Estimated:
    """This process's advantages before whitening."""

    values: torch.Tensor
    """[B] or [B, T]."""
    learns: torch.Tensor
    """bool, of the same shape: false where nothing is learned, which has advantage 0 and no part in whitening."""


def weighted(rewards_NF: torch.Tensor, weights_F: torch.Tensor) -> torch.Tensor:
    """Each completion's reward, [N]: the weighted sum of what its reward functions gave; NaN where none gave a number."""
    rewards_N = (rewards_NF * weights_F.to(rewards_NF.device)).nansum(dim=1)
    rewards_N[rewards_NF.isnan().all(dim=1)] = torch.nan
    return rewards_N


def estimated(
    algorithm: Algorithm,
    rewards_N: torch.Tensor,
    *,
    mask_BT: torch.Tensor,
    kl_BT: torch.Tensor | None,
    num_generations: int,
    accelerator: Any,
    **known: Any,
) -> Estimated:
    """Advantages of this process's rows, from the rewards of all.

    kl_BT: beta times log(pi_old / pi_ref) of each token, which the reward is less by; None without. known: what the algorithm reads besides.
    """
    num_rows = len(mask_BT)
    mine = slice(accelerator.process_index * num_rows, (accelerator.process_index + 1) * num_rows)
    if algorithm.level == "token":
        rewards_B = rewards_N[mine]
        kl_BT = torch.zeros(mask_BT.shape, device=mask_BT.device) if kl_BT is None else kl_BT
        values_BT = algorithm.advantages(rewards_B, kl_BT=kl_BT, mask_BT=mask_BT, **known)
        return Estimated(values_BT, mask_BT & ~rewards_B.isnan()[:, None])
    if kl_BT is not None:
        # One number a completion, log(pi_old / pi_ref) summed over its tokens, as TRL's RLOOTrainer has it.
        rewards_N = rewards_N - accelerator.gather(kl_BT.sum(1))
    rewards_PG = rewards_N.view(-1, num_generations)
    learns_PG = ~rewards_PG.isnan()
    if algorithm.has_group_baseline:
        learns_PG = learns_PG & ~is_constant(rewards_PG)[:, None]
    values_PG = algorithm.advantages(rewards_PG, **known)
    return Estimated(values_PG.flatten()[mine], learns_PG.flatten()[mine])


def whitened(estimate: Estimated, *, accelerator: Any) -> torch.Tensor:
    """The advantages with mean 0 and standard deviation 1 over what learns, of all processes; 0 elsewhere."""
    kept = estimate.values[estimate.learns].double()
    num, total = accelerator.reduce(torch.stack([kept.new_tensor(len(kept)), kept.sum()]), reduction="sum")
    mean = total / num.clamp(min=1)
    variance = accelerator.reduce(((kept - mean) ** 2).sum(), reduction="sum") / num.clamp(min=1)
    # Where all values are the same, whitening would blow up rounding alone.
    ends = torch.stack([kept.max(), -kept.min()]) if len(kept) else mean.new_full((2,), -torch.inf)
    highest, minus_lowest = accelerator.gather(ends[None]).amax(0)
    if highest <= -minus_lowest:
        return torch.zeros_like(estimate.values)
    values = (estimate.values - mean) / (variance.sqrt() + EPSILON)
    return torch.where(estimate.learns, values, 0.0).to(estimate.values.dtype)


def constant_completions(rewards: torch.Tensor, *, num_generations: int) -> torch.Tensor:
    """True for a completion whose group has one reward, of each function where there are several; bool, [N] from [N] or [N, F]."""
    columns = rewards.unbind(1) if rewards.dim() == 2 else (rewards,)
    is_constant_PF = torch.stack([is_constant(column.view(-1, num_generations)) for column in columns], 1)
    return is_constant_PF.all(1).repeat_interleave(num_generations)


def mean_per_row(advantages: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """One advantage a row, [B]: the mean over the tokens of the mask where each token has its own."""
    if advantages.dim() == 1:
        return advantages
    return (advantages * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
