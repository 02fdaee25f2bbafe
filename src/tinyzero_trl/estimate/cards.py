"""GPUs by name: memory, peak throughput, bandwidth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyzero_trl.failures import ConfigError, nearest


@dataclass(frozen=True)
class Card:
    """One GPU, as its data sheet has it."""

    name: str
    memory_gib: float
    """What its driver shows, not what its box says."""
    tflops: float
    """Dense matrix products in bfloat16 with float32 sums (float16 where it has no bfloat16), 10^12 a second."""
    bandwidth: float
    """Of its memory, 10^12 bytes a second."""


CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        Card("RTX3070", 8.0, 41, 0.448),
        Card("RTX4060", 8.0, 30, 0.272),
        Card("T4", 15.0, 65, 0.320),
        Card("V100", 16.0, 125, 0.900),
        Card("RTX4080", 16.0, 98, 0.717),
        Card("A10", 22.5, 125, 0.600),
        Card("L4", 22.5, 121, 0.300),
        Card("RTX3090", 24.0, 71, 0.936),
        Card("RTX4090", 24.0, 165, 1.008),
        Card("RTX5090", 31.8, 210, 1.792),
        Card("A100-40", 40.0, 312, 1.555),
        Card("A40", 45.0, 150, 0.696),
        Card("L40S", 45.0, 362, 0.864),
        Card("A6000", 48.0, 155, 0.768),
        Card("A100", 80.0, 312, 2.039),
        Card("H100", 80.0, 989, 3.350),
        Card("H200", 140.0, 989, 4.800),
        Card("B200", 180.0, 2250, 8.000),
    )
}
"""Source: NVIDIA's data sheets, without sparsity; consumer cards at the rate for float32 sums."""
SIZES_GB = (8, 16, 24, 40, 80, 140)
"""Cards a recipe may be said to fit."""
USABLE = 0.97
"""Share of a card that a process gets: the driver and a desktop take the rest."""


def card_of(name: str) -> Card:
    """The card a person names, or that nvidia-smi shows as `NVIDIA H100 80GB HBM3`. Raises: ConfigError that lists them."""
    plain = (
        name.upper().replace("NVIDIA", "").replace("GEFORCE", "").replace("TESLA", "").replace(" ", "").replace("-", "")
    )
    if "A100" in plain and "40" in plain:
        return CARDS["A100-40"]
    found = [card for key, card in CARDS.items() if key.replace("-", "") in plain and key != "A100-40"]
    if not found:
        raise ConfigError(
            f"--gpu {name!r} is not known; known are {', '.join(CARDS)}{nearest(name.upper(), list(CARDS))}"
        )
    return max(found, key=lambda card: len(card.name))


def smallest_size(peak_bytes: float) -> int | None:
    """The smallest of SIZES_GB that holds so many bytes, or None."""
    return next((size for size in SIZES_GB if peak_bytes <= USABLE * size * 2**30), None)
