"""A value model that learns from the rows of two processes; in the second batch, one of them has no rewards at all."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel

from tinyzero_trl.trainer.critic import ValueLearner, ValueModel


def rows(lengths: list[int], *, seed: int = 0, reward: float = 1.0) -> dict[str, torch.Tensor]:
    """A batch of the learner: prompts of 3 tokens, completions of the given lengths, and a target for every token."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), max(lengths))
    mask = (torch.arange(size[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(6, 200, size, generator=generator)
    returns = torch.rand(size, generator=generator) * reward
    return {
        "prompt_ids": torch.randint(6, 200, (size[0], 3), generator=generator),
        "prompt_mask": torch.ones(size[0], 3, dtype=torch.long),
        "completion_ids": torch.where(mask.bool(), ids, 1),
        "completion_mask": mask,
        "values": torch.zeros(size),
        "returns": torch.where(mask.bool(), returns, torch.nan),
    }


def learned(model: str | Path, *, ranks: tuple[int, ...]) -> torch.Tensor:
    """Weights of a value model that learned from the rows of these of two processes."""
    batches = [(rows([9, 1, 5, 7], seed=1), rows([2, 3], seed=2)), (rows([4, 4], seed=3), rows([1, 2], seed=4))]
    batches[1][1]["returns"].fill_(torch.nan)
    value_model = ValueModel(AutoModel.from_pretrained(model, dtype=torch.float32))
    learner = ValueLearner(value_model, learning_rate=1e-3, clip_range=10.0, max_grad_norm=0.1, rows_at_once=64)
    for batch in batches:
        learner.learn([batch[rank] for rank in ranks], num_minibatches=2)
    return torch.cat([value.detach().flatten() for value in learner.model.state_dict().values()])
