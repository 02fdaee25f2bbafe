"""What rewards become: one file an estimator, each a pure function; `ALGORITHMS` is the table a recipe chooses from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Algorithm:
    """What sets a method apart from the others, besides its estimator."""

    source: str
    """Paper and equation."""
    kl: Literal["loss", "reward"] = "loss"
    """Where `trainer.beta` weighs the divergence from the reference model."""
    whitening: Literal["none", "batch"] = "none"
    """What `advantage_whitening: null` means for it."""
    requires: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values a recipe may give the keys of `trainer` that make the method what it is, as text."""


ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm("DeepSeekMath (arXiv 2402.03300), eq. 3"),
    "ppo": Algorithm(
        "Schulman et al. (arXiv 1707.06347), with GAE (arXiv 1506.02438); TinyZero", kl="reward", whitening="batch"
    ),
}
