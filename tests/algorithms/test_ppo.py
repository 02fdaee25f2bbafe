"""PPO's numbers, by hand and by brute force."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tinyzero_trl.algorithms.ppo import gae, token_rewards, value_loss  # noqa: E402


def brute_force(rewards: list[float], values: list[float], *, gamma: float, lam: float) -> list[float]:
    """Equation 16 of the paper as it stands: a sum over all later TD errors, for each token."""
    after = [*values, 0.0][1:]
    deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_over_all_later_td_errors(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(5, 9, generator=generator), torch.randn(5, 9, generator=generator)
    lengths = [9, 4, 1, 7, 0]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    advantages = gae(rewards, values_BT=values, mask_BT=mask, gamma=gamma, lam=lam)
    for row, length in enumerate(lengths):
        expected = brute_force(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma=gamma, lam=lam)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-5)
        assert not advantages[row, length:].any()


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    advantages = gae(rewards, values_BT=values, mask_BT=torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=0.5)
    # delta = -0.25, 0.5, 0.25;  A_2 = 0.25;  A_1 = 0.5 + 0.5 * 0.25;  A_0 = -0.25 + 0.5 * 0.625
    assert advantages.tolist() == [[0.0625, 0.625, 0.25]]


def test_with_lambda_1_the_advantage_is_what_is_still_to_come_less_the_value() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, 8.0]])
    advantages = gae(rewards, values_BT=values, mask_BT=torch.ones(1, 3, dtype=torch.bool), gamma=1.0, lam=1.0)
    assert advantages.tolist() == [[7.0 - 0.5, 6.0 - 0.25, 4.0 - 8.0]]


def test_with_lambda_0_the_advantage_is_the_td_error() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.5, 0.25, 8.0]])
    advantages = gae(rewards, values_BT=values, mask_BT=torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.0)
    assert advantages.tolist() == [[1 + 0.125 - 0.5, 2 + 4 - 0.25, 4 - 8.0]]


def test_what_a_tool_wrote_in_between_is_no_step() -> None:
    mask = torch.tensor([[True, False, False, True, True, False]])
    rewards = torch.tensor([[1.0, 9.0, 9.0, 2.0, 4.0, 9.0]])
    values = torch.tensor([[0.5, 9.0, 9.0, 0.25, 8.0, 9.0]])
    advantages = gae(rewards, values_BT=values, mask_BT=mask, gamma=0.5, lam=0.5)
    expected = brute_force([1.0, 2.0, 4.0], [0.5, 0.25, 8.0], gamma=0.5, lam=0.5)
    assert advantages[mask].tolist() == pytest.approx(expected)
    assert not advantages[~mask].any()


def test_the_reward_is_on_the_last_token_and_the_divergence_on_each() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.5, 7.0, 7.0], [7.0, 7.0, 7.0]])
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl_BT=kl, mask_BT=mask)
    expected = torch.tensor([[-0.1, -0.2, 0.7], [1.5, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(rewards, expected)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (0.5, 0.4, 1.0, 0.125, -0.5),  # within the range: the plain squared error
        (0.9, 0.4, 1.0, 0.08, 0.0),  # moved 0.5 towards the target, 0.2 allowed: (0.6 - 1)^2 / 2, and no gradient
        (0.0, 0.4, 1.0, 0.5, -1.0),  # moved away from the target: the larger error is the plain one
        (1.5, 0.4, 0.0, 1.125, 1.5),
    ],
)
def test_the_value_loss_is_the_larger_of_the_plain_and_the_clipped_error(
    value: float, old: float, target: float, loss: float, slope: float
) -> None:
    given = torch.tensor([value], requires_grad=True)
    result = value_loss(given, old_values_BT=torch.tensor([old]), returns_BT=torch.tensor([target]), clip_range=0.2)
    result.sum().backward()
    assert result.item() == pytest.approx(loss)
    assert given.grad is not None
    assert given.grad.item() == pytest.approx(slope)
