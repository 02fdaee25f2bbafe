"""Rewards that cannot be learned from: numbers out of range, batches without any, and runs in which nothing earns anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tinyzero_trl.failures import RewardFailure
from tinyzero_trl.rewards import text_of

MAX_REWARD = 1e6
"""Absolute reward from which on a number is taken for a mistake; for_trl has a narrower range of its own."""
MAX_UNSCORED = 3
"""Generation batches in a row without a single reward after which a run stops."""
NUM_SAMPLES = 3
"""Responses that a message about rewards shows."""


def out_of_range(rewards_NF: torch.Tensor) -> torch.Tensor:
    """True for a reward that must not reach the weights; bool, [N, F]."""
    return rewards_NF.isinf() | (rewards_NF.abs() > MAX_REWARD)


class RewardWatch:
    """Ends a run that cannot learn: no reward is a number, or nothing ever earns anything."""

    def __init__(self, *, give_up_after: int):
        """give_up_after: generation batches in which nothing earns anything before the run stops; 0 never stops."""
        self.give_up_after = give_up_after
        self.num_unscored = 0
        """Batches in a row without a reward."""
        self.num_batches = 0
        self.has_earned = False

    def see(self, rewards_N: torch.Tensor, prompts: Sequence[Any], completions: Sequence[Any]) -> None:
        """Take in a batch of weighted rewards, NaN where there is none. Raises: RewardFailure, with some of its responses."""
        self.num_unscored = self.num_unscored + 1 if rewards_N.isnan().all() else 0
        rewards_N = rewards_N.nan_to_num(nan=0.0)
        # Where rewards are penalties, a difference between them is what there is to learn from.
        self.has_earned = self.has_earned or bool((rewards_N > 0).any() or rewards_N.amax() > rewards_N.amin())
        self.num_batches += 1
        if self.num_unscored >= MAX_UNSCORED:
            raise RewardFailure(
                f"no reward function gave a number for any response in {MAX_UNSCORED} batches in a row; "
                f"the log above says why.{_samples(prompts, completions)}"
            )
        if self.give_up_after and not self.has_earned and self.num_batches >= self.give_up_after:
            raise RewardFailure(
                f"nothing earned any reward in the first {self.give_up_after} batches, so there is nothing to learn from "
                "(give_up_after in the recipe). Does the model end its responses within trainer.max_completion_length, "
                f"and does it know the format?{_samples(prompts, completions)}"
            )

    def state(self) -> dict[str, Any]:
        """The counters, by the names that saved files have for them."""
        return {
            "_num_unscored": self.num_unscored,
            "_num_unrewarded": self.num_batches,
            "_has_earned": self.has_earned,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave; counters that are not there begin anew."""
        self.num_unscored = state.get("_num_unscored", 0)
        self.num_batches = state.get("_num_unrewarded", 0)
        self.has_earned = state.get("_has_earned", False)


def _samples(prompts: Sequence[Any], completions: Sequence[Any]) -> str:
    shown = []
    for prompt, completion in list(zip(prompts, completions, strict=True))[:NUM_SAMPLES]:
        shown.append(
            f"\n--- prompt ends: {(text_of(prompt) or '')[-160:]!r}\n    completion:  {(text_of(completion) or '')[:400]!r}"
        )
    return "".join(shown)
