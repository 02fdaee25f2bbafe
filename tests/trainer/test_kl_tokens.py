"""`kl_tokens`: the KL penalty at some tokens and not at others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.trainer.conftest import weights_of
from tests.trainer.forced_runs import forced

from tinyzero_trl.models import matching_ids
from tinyzero_trl.trainer import TinyZeroTrainer

BEFORE_M, FROM_M = "[^m-z]*", "(?s:.*)[m-z](?s:.*)"
"""Two patterns that share no token and have all."""


def moved(build: Any, **settings: Any) -> dict[str, torch.Tensor]:
    """The change of each parameter by SGD on one batch, while the reference model is another than the policy."""
    trainer = forced(build(TinyZeroTrainer, optim="sgd", learning_rate=0.1, max_grad_norm=0.0, **settings))
    if trainer.ref_model is not None:
        generator = torch.Generator().manual_seed(5)
        for parameter in trainer.ref_model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    before = weights_of(trainer)
    trainer.train()
    return {name: value - before[name] for name, value in weights_of(trainer).items()}


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2, "steps_per_generation": 2}])
def test_the_penalties_of_two_halves_of_the_vocabulary_make_the_whole(build: Any, settings: dict[str, Any]) -> None:
    settings = {"beta": 0.5, "max_steps": 1, **settings}
    free = moved(build, **settings | {"beta": 0.0})
    whole = moved(build, **settings)
    halves = [moved(build, kl_tokens=pattern, **settings) for pattern in (BEFORE_M, FROM_M)]
    for name, change in whole.items():
        parts = [half[name] - free[name] for half in halves]
        torch.testing.assert_close(parts[0] + parts[1], change - free[name], atol=1e-6, rtol=1e-4)
    for half in halves:
        assert max((half[name] - free[name]).abs().max() for name in free) > 1e-4


def test_every_update_on_a_batch_compares_with_the_reference_model(build: Any) -> None:
    everywhere = {"beta": 0.5, "num_iterations": 3, "max_steps": 3, "kl_tokens": "(?s:.*)"}
    expected = moved(build, **everywhere | {"kl_tokens": None})
    for name, change in moved(build, **everywhere).items():
        torch.testing.assert_close(change, expected[name], atol=1e-6, rtol=0)


def test_where_the_penalty_is_part_of_the_reward_other_tokens_pay_nothing(build: Any) -> None:
    trainer = forced(build(TinyZeroTrainer, algorithm="reinforce", beta=0.5, kl_tokens=FROM_M))
    trainer.policy_logps = lambda batch: torch.ones(batch["completion_ids"].shape)
    trainer.reference_logps = lambda batch: torch.zeros(batch["completion_ids"].shape)
    batch = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])
    paying = torch.isin(batch["completion_ids"], torch.tensor(matching_ids(trainer._tokenizer, FROM_M)))
    paying &= batch["completion_mask"].bool()
    assert 0 < paying.sum() < batch["completion_mask"].sum()
    assert torch.equal(trainer._kl_penalty(batch), 0.5 * paying)
