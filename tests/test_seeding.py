"""Draws without state: uniform, unrelated from seed to seed, and turned into tokens of the right probabilities."""

from __future__ import annotations

import torch

from tinyzero_trl.seeding import generator_of, row_seeds, seed_of, tokens_at, uniforms


def test_uniforms_are_uniform_over_seeds_and_over_places() -> None:
    for draws in (
        uniforms(torch.arange(100_000), 0),
        torch.stack([uniforms(torch.tensor([3]), t) for t in range(9999)]),
    ):
        assert draws.min() >= 0
        assert draws.max() < 1
        counts = torch.histc(draws.float(), bins=20, min=0, max=1)
        expected = draws.numel() / 20
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 43.8, "p < 0.001 with 19 degrees of freedom"


def test_streams_of_neighbouring_seeds_and_places_are_uncorrelated() -> None:
    seeds = torch.arange(20_000)
    first, shifted, later = uniforms(seeds, 0), uniforms(seeds + 1, 0), uniforms(seeds, 1)
    for other in (shifted, later, uniforms(seeds * 2, 0)[torch.randperm(20_000)]):
        correlation = torch.corrcoef(torch.stack([first, other]))[0, 1]
        assert abs(correlation) < 4 / 20_000**0.5


def test_a_stream_is_a_function_of_its_seed_alone() -> None:
    seeds = torch.tensor([-5, 0, 2**63 - 1, 77])
    assert torch.equal(uniforms(seeds, 9)[2:], uniforms(seeds[2:], 9))
    assert uniforms(seeds, 9).tolist() != uniforms(seeds, 10).tolist()
    assert torch.allclose(uniforms(torch.tensor([0]), 0), uniforms(torch.tensor([0]), 0))


def test_tokens_come_with_their_probabilities() -> None:
    probabilities_V = torch.tensor([0.0, 0.5, 0.25, 0.0, 0.2, 0.05, 0.0])
    num_draws = 50_000
    tokens = tokens_at(probabilities_V.expand(num_draws, -1), uniforms(torch.arange(num_draws), 4))
    counts = torch.bincount(tokens, minlength=7)
    possible = probabilities_V > 0
    assert counts[~possible].sum() == 0
    expected = num_draws * probabilities_V[possible]
    assert ((counts[possible] - expected) ** 2 / expected).sum() < 16.3, "p < 0.001 with 3 degrees of freedom"


def test_tokens_stand_where_the_cumulative_probability_passes_the_number() -> None:
    probabilities_BV = torch.tensor([[0.25, 0.25, 0.5]]).expand(6, -1)
    edges = torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    assert tokens_at(probabilities_BV, edges).tolist() == [0, 0, 1, 1, 2, 2]
    assert tokens_at(torch.tensor([[1.0, 0.0]]), edges[-1:]).tolist() == [0]


def test_seeds_differ_by_every_part_of_what_they_are_for() -> None:
    seeds = {
        seed_of(s, mode, n, row) for s in range(4) for mode in ("train", "eval") for n in range(9) for row in range(9)
    }
    assert len(seeds) == 4 * 2 * 9 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert row_seeds((1, "train", 2), first=3, num_rows=2) == [seed_of(1, "train", 2, 3), seed_of(1, "train", 2, 4)]
    assert torch.equal(torch.rand(3, generator=generator_of(1, 2)), torch.rand(3, generator=generator_of(1, 2)))
