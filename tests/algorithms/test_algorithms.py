"""Each estimator against numbers worked out by hand, against TRL, and on a bandit that it must learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from trl.trainer.utils import nanstd

from tinyzero_trl.algorithms import dapo, dr_grpo, grpo, raft, reinforce, reinforce_pp, remax, rloo
from tinyzero_trl.algorithms.groups import is_constant

NAN = math.nan
GROUP = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 3.0]])
LENGTHS = torch.tensor([[9, 5, 5, 7], [3, 3, 3, 8]])
WITH_A_BASELINE = {
    "grpo": grpo.advantages,
    "dr_grpo": dr_grpo.advantages,
    "rloo": rloo.advantages,
    "raft": lambda rewards_PG: raft.advantages(rewards_PG, lengths_PG=torch.ones(rewards_PG.shape, dtype=torch.long)),
}


def close(computed: torch.Tensor, expected: list[Any]) -> bool:
    return torch.allclose(computed, torch.tensor(expected), atol=1e-6)


def test_grpo_divides_the_distance_from_the_mean_by_the_deviation() -> None:
    # mean 0.5, squares 4 x 0.25 over 3; mean 0.75, squares 3 x 0.5625 + 5.0625 over 3
    high, other = 0.5 / (math.sqrt(1 / 3) + 1e-4), 1.5 + 1e-4
    expected = [[high, -high, -high, high], [-0.75 / other, -0.75 / other, -0.75 / other, 2.25 / other]]
    assert close(grpo.advantages(GROUP), expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_grpo_is_trls_own_formula_bit_for_bit(scale: str) -> None:
    rewards_PG = torch.rand(16, 8, generator=torch.Generator().manual_seed(0))
    rewards_PG[3, 2:4] = NAN
    theirs = rewards_PG - torch.nanmean(rewards_PG, dim=1)[:, None]
    if scale == "group":
        theirs = theirs / (nanstd(rewards_PG, dim=1)[:, None] + 1e-4)
    if scale == "batch":
        theirs = theirs / (nanstd(rewards_PG.flatten()) + 1e-4)
    assert torch.equal(grpo.advantages(rewards_PG, scale=scale), theirs.nan_to_num(nan=0.0))


def test_dr_grpo_divides_by_nothing() -> None:
    assert close(dr_grpo.advantages(GROUP), [[0.5, -0.5, -0.5, 0.5], [-0.75, -0.75, -0.75, 2.25]])


def test_rloo_takes_the_mean_of_the_others_as_baseline() -> None:
    assert close(rloo.advantages(GROUP), [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [-1, -1, -1, 3]])
    assert torch.allclose(rloo.advantages(GROUP), 4 / 3 * dr_grpo.advantages(GROUP))
    assert close(rloo.advantages(torch.tensor([[1.0, NAN, 0.0, 2.0]])), [[0.0, 0.0, -1.5, 1.5]])


def test_reinforce_has_no_baseline() -> None:
    assert close(reinforce.advantages(torch.tensor([[0.1, 0.1, NAN]])), [[0.1, 0.1, 0.0]])


def test_reinforce_pp_sums_what_is_still_to_come() -> None:
    mask_BT = torch.tensor([[True, True, True, False], [True, False, False, False]])
    kl_BT = torch.tensor([[0.1, 0.2, 0.3, 9.0], [0.5, 9.0, 9.0, 9.0]])
    computed = reinforce_pp.advantages(torch.tensor([1.0, 2.0]), kl_BT=kl_BT, mask_BT=mask_BT)
    assert close(computed, [[0.4, 0.5, 0.7, 0.0], [1.5, 0.0, 0.0, 0.0]])


def test_remax_takes_the_greedy_response_as_baseline() -> None:
    computed = remax.advantages(GROUP, greedy_P=torch.tensor([1.0, NAN]))
    assert close(computed, [[0.0, -1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


def test_raft_takes_the_best_of_each_group_and_of_equals_the_shortest() -> None:
    assert close(raft.advantages(GROUP, lengths_PG=LENGTHS), [[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    tied = torch.tensor([[NAN, -2.0, -1.0, -1.0]])
    assert close(raft.advantages(tied, lengths_PG=torch.tensor([[1, 1, 4, 4]])), [[0.0, 0.0, 1.0, 0.0]])


def test_the_overlong_penalty_grows_from_nothing_to_one_over_its_last_tokens() -> None:
    lengths_N = torch.tensor([0, 80, 81, 90, 100, 120])
    assert close(dapo.soft_overlong_penalty(lengths_N, max_length=100, num_soft=20), [0, 0, -0.05, -0.5, -1, -1])


@pytest.mark.parametrize("name", WITH_A_BASELINE)
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.0, -3.3, 1e30])
def test_a_constant_group_has_advantages_of_exactly_zero(name: str, value: float) -> None:
    for num_generations in (2, 7, 8, 16):
        assert WITH_A_BASELINE[name](torch.full((2, num_generations), value)).count_nonzero() == 0


@pytest.mark.parametrize("name", WITH_A_BASELINE)
def test_what_nothing_scored_neither_counts_nor_learns(name: str) -> None:
    with_nan = torch.tensor([[1.0, 0.0, NAN, 0.0, 1.0], [NAN] * 5, [NAN, NAN, 2.0, NAN, NAN]])
    computed = WITH_A_BASELINE[name](with_nan)
    assert computed[with_nan.isnan()].count_nonzero() == 0
    assert computed[1:].count_nonzero() == 0
    assert torch.equal(computed[0, [0, 1, 3, 4]], WITH_A_BASELINE[name](with_nan[:1, [0, 1, 3, 4]])[0])


def test_a_group_is_constant_when_its_scored_rewards_are_all_the_same() -> None:
    rewards_PG = torch.tensor([[0.1] * 4, [0.1, 0.2, 0.1, 0.1], [NAN, 0.3, 0.3, NAN], [NAN] * 4])
    assert is_constant(rewards_PG).tolist() == [True, False, True, True]


ESTIMATORS = {
    **WITH_A_BASELINE,
    "grpo, batch": lambda rewards_PG: grpo.advantages(rewards_PG, scale="batch"),
    "reinforce, whitened": lambda r: (reinforce.advantages(r) - r.mean()) / (r.std() + 1e-4),
    "reinforce_pp, whitened": lambda r: (
        lambda a: (a - a.mean()) / (a.std() + 1e-4)
    )(
        reinforce_pp.advantages(
            r.flatten(), kl_BT=torch.zeros(r.numel(), 1), mask_BT=torch.ones(r.numel(), 1, dtype=torch.bool)
        ).view(r.shape)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ESTIMATORS, "remax"])
def test_every_estimator_learns_a_bandit(name: str) -> None:
    """Ten arms of rewards 0 to 1, a softmax policy from uniform: expected reward 0.5 rises above 0.8 by policy gradients."""
    generator = torch.Generator().manual_seed(0)
    worth = torch.linspace(0, 1, 10)
    logits = torch.zeros(10, requires_grad=True)
    for _ in range(150):
        probabilities = logits.softmax(0)
        arms_PG = torch.multinomial(probabilities.detach(), 64, replacement=True, generator=generator).view(8, 8)
        rewards_PG = worth[arms_PG]
        if name == "remax":
            advantages_PG = remax.advantages(rewards_PG, greedy_P=worth[logits.argmax()].expand(8))
        else:
            advantages_PG = ESTIMATORS[name](rewards_PG)
        (gradient,) = torch.autograd.grad((advantages_PG * probabilities.log()[arms_PG]).mean(), logits)
        logits.data += gradient
    assert (logits.softmax(0) * worth).sum() > 0.8
