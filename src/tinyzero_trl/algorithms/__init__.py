"""Rewards to advantages: one estimator a file, each a pure function; `ALGORITHMS` is the table a recipe chooses from.

    rewards of N completions -> [P, G], a row for each prompt -> `Algorithm.advantages` -> [P, G], or [B, T] where each token has its own

Axes of the whole code base; a tensor's name ends in those it has, and a suffix is a promise:

    P  prompts of a generation batch               B  completions of this process, or rows of any batch
    G  completions of each prompt                  T  completion tokens, padded on the right
    N  completions over all processes, P x G       L  prompt tokens, padded on the left, and completion tokens
    F  reward functions                            V  vocabulary

NaN stands for a reward that no function gave.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Algorithm:
    """A method: its estimator, and the settings without which it would be another method."""

    source: str
    """Paper and equation."""
    estimator: str
    """The module of this folder whose function `advantages` it is; imported when it is first called, as it needs torch."""
    level: Literal["group", "token"] = "group"
    """`group`: from rewards [P, G] to advantages [P, G]. `token`: from rewards [B] to advantages [B, T]."""
    reads: tuple[str, ...] = ()
    """Names of what the estimator takes besides rewards, as it names its parameters."""
    has_group_baseline: bool = False
    """A group whose rewards are all the same has advantages of exactly 0."""
    kl: Literal["loss", "reward"] = "loss"
    """Place in which `trainer.beta` weighs the divergence from the reference model."""
    whitening: Literal["none", "batch"] = "none"
    """Meaning of `advantage_whitening: null`."""
    requires: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Values a recipe may give the keys of `trainer` that make the method what it is, as text."""

    def advantages(self, rewards: torch.Tensor, **known: Any) -> torch.Tensor:
        """Advantages before whitening, [P, G] or [B, T] by `level`. known: at least what `reads` names; the rest is left out."""
        estimate = import_module(f"{__name__}.{self.estimator}").advantages
        advantages: torch.Tensor = estimate(rewards, **{name: known[name] for name in self.reads})
        return advantages


TOKEN = {"importance_sampling_level": ("token",)}
"""The ratio of each token is its own: for methods whose advantages are of tokens, or whose loss is a likelihood."""
UNSCALED = {"scale_rewards": ("none", "False")}
"""Advantages are not divided by the deviation of the rewards, whatever `trainer.scale_rewards` says; so a recipe must say this."""
SCALED = {"scale_rewards": ("group", "True")}
SUM_OF_TOKENS = {"loss_type": ("dr_grpo", "dapo")}
"""Every token of a batch weighs the same."""
CLIPPED = {"loss_type": ("dapo", "dr_grpo", "bnpo", "grpo")}
"""Losses that are PPO's clipped surrogate; they differ in how they average over tokens."""

ALGORITHMS: dict[str, Algorithm] = {
    "grpo": Algorithm(
        "DeepSeekMath (arXiv 2402.03300), eq. 3", estimator="grpo", reads=("scale",), has_group_baseline=True
    ),
    "dr_grpo": Algorithm(
        "Dr. GRPO (arXiv 2503.20783), sec. 3",
        estimator="dr_grpo",
        has_group_baseline=True,
        requires={"loss_type": ("dr_grpo",), **UNSCALED},
    ),
    "dapo": Algorithm(
        "DAPO (arXiv 2503.14476), eq. 8 to 13",
        estimator="grpo",
        reads=("scale",),
        has_group_baseline=True,
        requires={"loss_type": ("dapo",), **SCALED},
    ),
    "gspo": Algorithm(
        "GSPO (arXiv 2507.18071), eq. 5 and 7",
        estimator="grpo",
        reads=("scale",),
        has_group_baseline=True,
        requires={"loss_type": ("grpo",), "importance_sampling_level": ("sequence",), **SCALED},
    ),
    "rloo": Algorithm(
        "Ahmadian et al. (arXiv 2402.14740), eq. 5",
        estimator="rloo",
        has_group_baseline=True,
        kl="reward",
        requires={"loss_type": ("dr_grpo",), **UNSCALED, **TOKEN},
    ),
    "reinforce": Algorithm(
        "Williams (1992), eq. 6",
        estimator="reinforce",
        kl="reward",
        whitening="batch",
        requires={**SUM_OF_TOKENS, **UNSCALED, **TOKEN},
    ),
    "reinforce_pp": Algorithm(
        "REINFORCE++ (arXiv 2501.03262), eq. 6 to 8",
        estimator="reinforce_pp",
        level="token",
        reads=("kl_BT", "mask_BT"),
        kl="reward",
        whitening="batch",
        requires={**CLIPPED, **UNSCALED, **TOKEN},
    ),
    "remax": Algorithm(
        "ReMax (arXiv 2310.10505), algorithm 2",
        estimator="remax",
        reads=("greedy_P",),
        kl="reward",
        requires={"loss_type": ("dr_grpo",), **UNSCALED, **TOKEN},
    ),
    "raft": Algorithm(
        "RAFT (arXiv 2304.06767), algorithm 1",
        estimator="raft",
        reads=("lengths_PG",),
        has_group_baseline=True,
        requires={"num_iterations": ("1",), **CLIPPED, **UNSCALED, **TOKEN},
    ),
    "ppo": Algorithm(
        "Schulman et al. (arXiv 1707.06347), with GAE (arXiv 1506.02438); TinyZero",
        estimator="ppo",
        level="token",
        reads=("kl_BT", "mask_BT", "values_BT", "gamma", "lam"),
        kl="reward",
        whitening="batch",
        requires={**CLIPPED, **UNSCALED, **TOKEN},
    ),
}
