"""Advantages of one made-up batch, each process computing its own rows, by every algorithm.

Groups lie across processes, but for ReMax's, which needs them whole; one completion has no reward, and one group is constant.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import torch
from accelerate import Accelerator

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.trainer.estimators import Estimators

G, C = 4, 5


def advantages(accelerator: Accelerator, algorithm: str, *, beta: float, whitening: str | None) -> torch.Tensor:
    num_rows = 16 if algorithm == "remax" else 12
    generator = torch.Generator().manual_seed(1)
    rewards_N = torch.rand(num_rows, generator=generator)
    rewards_N[:4], rewards_N[9] = 0.1, torch.nan
    lengths_N = torch.randint(1, C + 1, (num_rows,), generator=generator)
    mask_NC = (torch.arange(C)[None] < lengths_N[:, None]).long()
    old_NC, reference_NC = torch.randn(2, num_rows, C, generator=generator)
    greedy_P = torch.rand(num_rows // G, generator=generator)
    size = num_rows // accelerator.num_processes
    mine = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
    trainer = Estimators.__new__(Estimators)  # its arithmetic alone; a trainer needs a model
    trainer.__dict__ |= {
        "algorithm": algorithm,
        "advantage_whitening": whitening,
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "num_generations": G,
        "scale_rewards": "group",
        "kl_in_reward": beta if ALGORITHMS[algorithm].kl == "reward" else 0.0,
        "_metrics": {"train": defaultdict(list)},
        "_lengths_B": lengths_N[mine],
        "reference_logps": lambda scored: reference_NC[mine],
    }
    scored = {
        "completion_ids": mask_NC[mine],
        "completion_mask": mask_NC[mine],
        "sampling_per_token_logps": old_NC[mine],
    }
    if algorithm == "remax":
        scored["greedy_rewards"] = greedy_P[mine.start // G : mine.stop // G]
    return accelerator.gather(trainer._advantages(scored, rewards_N).contiguous())


def all_advantages(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    return {
        f"{algorithm}/{beta}/{whitening}": advantages(accelerator, algorithm, beta=beta, whitening=whitening)
        for algorithm in ALGORITHMS
        if algorithm != "ppo"
        for beta in (0.0, 0.3)
        for whitening in (None, "batch", "none")
    }
