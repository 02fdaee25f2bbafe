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


TOKEN = {"importance_sampling_level": ("token",)}
"""The ratio of each token is its own: for methods whose advantages are of tokens, or whose loss is a likelihood's."""
UNSCALED = {"scale_rewards": ("none", "False")}
"""Not divided by the deviation of the rewards, whatever `trainer.scale_rewards` says; so it has to say this."""
SCALED = {"scale_rewards": ("group", "True")}
SUM_OF_TOKENS = {"loss_type": ("dr_grpo", "dapo")}
"""Every token of a batch weighs the same."""
CLIPPED = {"loss_type": ("dapo", "dr_grpo", "bnpo", "grpo")}
"""Losses that are PPO's clipped surrogate; they differ in how they average over tokens."""

ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm("DeepSeekMath (arXiv 2402.03300), eq. 3"),
    "dr_grpo": Algorithm(
        "Dr. GRPO (arXiv 2503.20783), sec. 3",
        requires={"loss_type": ("dr_grpo",), **UNSCALED},
    ),
    "dapo": Algorithm("DAPO (arXiv 2503.14476), eq. 8 to 13", requires={"loss_type": ("dapo",), **SCALED}),
    "gspo": Algorithm(
        "GSPO (arXiv 2507.18071), eq. 5 and 7",
        requires={"loss_type": ("grpo",), "importance_sampling_level": ("sequence",), **SCALED},
    ),
    "rloo": Algorithm(
        "Ahmadian et al. (arXiv 2402.14740), eq. 5",
        kl="reward",
        requires={"loss_type": ("dr_grpo",), **UNSCALED, **TOKEN},
    ),
    "reinforce": Algorithm(
        "Williams (1992), eq. 6", kl="reward", whitening="batch", requires={**SUM_OF_TOKENS, **UNSCALED, **TOKEN}
    ),
    "reinforce_pp": Algorithm(
        "REINFORCE++ (arXiv 2501.03262), eq. 6 to 8",
        kl="reward",
        whitening="batch",
        requires={**CLIPPED, **UNSCALED, **TOKEN},
    ),
    "remax": Algorithm(
        "ReMax (arXiv 2310.10505), algorithm 2",
        kl="reward",
        requires={"loss_type": ("dr_grpo",), **UNSCALED, **TOKEN},
    ),
    "raft": Algorithm(
        "RAFT (arXiv 2304.06767), algorithm 1",
        requires={"num_iterations": ("1",), **CLIPPED, **UNSCALED, **TOKEN},
    ),
    "ppo": Algorithm(
        "Schulman et al. (arXiv 1707.06347), with GAE (arXiv 1506.02438); TinyZero",
        kl="reward",
        whitening="batch",
        requires={**CLIPPED, **UNSCALED, **TOKEN},
    ),
}
