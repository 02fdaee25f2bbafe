"""Advantages of one made-up batch, each process computing its own rows, by every algorithm.

Groups lie across processes, but for ReMax's, which needs them whole; one completion has no reward, and one group is constant.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.trainer.advantages import estimated, whitened

G, T = 4, 5


def advantages(accelerator: Accelerator, algorithm: str, *, beta: float, whitening: str | None) -> torch.Tensor:
    num_rows = 16 if algorithm == "remax" else 12
    generator = torch.Generator().manual_seed(1)
    rewards_N = torch.rand(num_rows, generator=generator)
    rewards_N[:4], rewards_N[9] = 0.1, torch.nan
    lengths_N = torch.randint(1, T + 1, (num_rows,), generator=generator)
    mask_NT = (torch.arange(T)[None] < lengths_N[:, None]).long()
    old_NT, reference_NT = torch.randn(2, num_rows, T, generator=generator)
    greedy_P = torch.rand(num_rows // G, generator=generator)
    size = num_rows // accelerator.num_processes
    mine = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
    known = {
        "scale": "group",
        "lengths_PG": lengths_N.view(-1, G),
        "greedy_P": greedy_P,
    }
    mask_BT = mask_NT[mine].bool()
    kl_BT = torch.where(mask_BT, old_NT[mine] - reference_NT[mine], 0.0)
    estimate = estimated(
        ALGORITHMS[algorithm],
        rewards_N,
        mask_BT=mask_BT,
        kl_BT=beta * kl_BT if beta and ALGORITHMS[algorithm].kl == "reward" else None,
        num_generations=G,
        accelerator=accelerator,
        **known,
    )
    if (whitening or ALGORITHMS[algorithm].whitening) == "none":
        return accelerator.gather(torch.where(estimate.learns, estimate.values, 0.0).contiguous())
    return accelerator.gather(whitened(estimate, accelerator=accelerator).contiguous())


def all_advantages(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    return {
        f"{algorithm}/{beta}/{whitening}": advantages(accelerator, algorithm, beta=beta, whitening=whitening)
        for algorithm in ALGORITHMS
        if algorithm != "ppo"
        for beta in (0.0, 0.3)
        for whitening in (None, "batch", "none")
    }
