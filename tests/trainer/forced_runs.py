"""The same completions for TRL's trainer and for ours, and what the two end with."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

SAMPLED = {"loss_type": "grpo", "num_generations": 4, "optim": "sgd", "learning_rate": 0.1, "max_steps": 4, "beta": 0.0}
"""Adam would blow rounding of gradients near 0 up to full steps."""


def digest(trainer: Any) -> str:
    content = hashlib.sha256()
    for name, value in sorted(trainer.model.state_dict().items()):
        content.update(name.encode() + value.numpy().tobytes())
    return content.hexdigest()


def always(value: float) -> Any:
    def constant(completions: list[str], **columns: Any) -> list[float]:
        return [value] * len(completions)

    return constant


def now_and_then(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Differs within the groups of every other problem only."""
    return [
        ids[0] % 5 / 5.0 if int(prompt.split()[0]) % 2 else 0.3
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def forced(trainer: Any, *, logps: bool = False, stretch: float = 1.0) -> Any:
    """The same completions for every trainer: of 1 to 16 tokens, drawn anew in each call, with sampling log-probabilities."""
    generator = torch.Generator().manual_seed(3)

    def generate(prompt_ids: list[list[int]], *arguments: Any, **options: Any) -> Any:
        completions, sampled = [], []
        for _ in prompt_ids:
            length = int(torch.randint(1, 17, (1,), generator=generator))
            ids = torch.randint(6, 200, (length,), generator=generator)
            ids[-1] = 0 if length % 2 else ids[-1]  # the end of a text, or cut off
            completions.append(ids.tolist())
            around = torch.randn(length, generator=generator) * 0.05 * stretch - 5.56
            around[torch.rand(length, generator=generator) < 0.05] = torch.nan
            sampled.append([None if value != value else value for value in around.tolist()])
        return completions, sampled if logps else None

    trainer._generate_single_turn = generate
    return trainer


def trained(trainer: Any) -> torch.Tensor:
    before = torch.cat([value.flatten().clone() for value in trainer.model.state_dict().values()])
    trainer.train()
    after = torch.cat([value.flatten() for value in trainer.model.state_dict().values()])
    assert not torch.equal(before, after)
    return after
