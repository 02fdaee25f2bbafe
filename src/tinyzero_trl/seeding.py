"""Random numbers without state: each is a function of a seed and a position, so the order of events does not change it.

The draws of a row depend on its own seed and on the position of the token, not on the other rows of the batch.
Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""2^64 over the golden ratio, as a signed number: the step of splitmix64."""
MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def seed_of(*parts: int | str) -> int:
    """A seed of 63 bits that is a function of the parts, such as (42, "train", 7, 3).

    >>> seed_of(42, "train", 7, 3)
    906801140485808290
    """
    content = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(content, "little") >> 1


def generator_of(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded by the parts."""
    import torch

    return torch.Generator().manual_seed(seed_of(*parts))


def uniforms(seeds_B: torch.Tensor, places_B: torch.Tensor | int) -> torch.Tensor:
    """The number at a position in the stream of each seed, float64 in [0, 1), [B].

    seeds_B: int64, any value; adjacent seeds give unrelated streams. places_B: one for each seed or one for all,
    from 0. Integer overflow in torch wraps, as the hash needs.
    Source: splitmix64 (Steele, Lea, Flood 2014), applied to the seed and then to the place in its stream.
    """
    import torch

    offset_B = (torch.as_tensor(places_B, device=seeds_B.device) + 1) * GOLDEN
    bits_B = _mixed(_mixed(seeds_B + GOLDEN) + offset_B)
    return _shifted(bits_B, 11).double() * 2.0**-53


def tokens_at(probabilities_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """The token where each row's cumulative probability passes its uniform number, [B].

    The sum is taken in float64, so that small probabilities are not lost, and scaled to its total. A token of probability 0 is never
    taken. The result of a row is the same in every batch.
    """
    import torch

    cumulative_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
    places_B1 = uniforms_B[:, None] * cumulative_BV[:, -1:]
    # No such token exists only if probabilities are NaN; the caller finds that in the log-probability.
    return torch.searchsorted(cumulative_BV, places_B1, right=True)[:, 0].clamp(max=probabilities_BV.shape[-1] - 1)


def row_seeds(parts: Sequence[int | str], *, first: int, num_rows: int) -> list[int]:
    """A seed for each of the rows `first`, `first + 1`, ...: a function of the parts and the number of the row."""
    return [seed_of(*parts, row) for row in range(first, first + num_rows)]


def _mixed(bits_B: torch.Tensor) -> torch.Tensor:
    """The finalizer of splitmix64."""
    bits_B = (bits_B ^ _shifted(bits_B, 30)) * MULTIPLIERS[0]
    bits_B = (bits_B ^ _shifted(bits_B, 27)) * MULTIPLIERS[1]
    return bits_B ^ _shifted(bits_B, 31)


def _shifted(bits_B: torch.Tensor, num: int) -> torch.Tensor:
    """A logical shift to the right; that of torch is arithmetic and copies the sign bit."""
    return (bits_B >> num) & ((1 << (64 - num)) - 1)
