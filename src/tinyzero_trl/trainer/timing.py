"""Seconds of an optimizer step by phase, and a warning where rewards hold up the run."""

from __future__ import annotations

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tinyzero_trl.rewards import BatchReward

logger = logging.getLogger(__name__)
PHASES = ("generation", "scoring", "training")
"""Phases of a step; together they are all of it."""
MAX_SHARE = 0.2
"""Share of a step's time in rewards from which on the run says so."""
NUM_STEPS = 10
"""Optimizer steps over which the share is measured."""


class StepClock:
    """Adds up the seconds of the optimizer step under way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        """By phase; `rewards` is the part of scoring that is spent in reward functions."""
        self._last_steps: deque[tuple[float, float]] = deque(maxlen=NUM_STEPS)
        """Seconds in rewards and in all, by optimizer step."""
        self._has_said_slow = False

    @contextmanager
    def phase(self, *names: str) -> Iterator[None]:
        """Count the block's seconds as these."""
        start = time.perf_counter()
        try:
            yield
        finally:
            for name in names:
                self.seconds[name] += time.perf_counter() - start

    @contextmanager
    def training(self) -> Iterator[None]:
        """Count the block's seconds as training, less those of generation and scoring within it."""
        start, before = time.perf_counter(), self.seconds["generation"] + self.seconds["scoring"]
        yield
        within = self.seconds["generation"] + self.seconds["scoring"] - before
        self.seconds["training"] += time.perf_counter() - start - within

    def end_step(self) -> dict[str, float]:
        """Seconds by phase and the share of rewards, as metrics; the next step begins at 0."""
        rewards, total = self.seconds["rewards"], sum(self.seconds[phase] for phase in PHASES)
        self._last_steps.append((rewards, total))
        found = {f"seconds/{phase}": self.seconds[phase] for phase in PHASES if phase in self.seconds}
        self.seconds.clear()
        return {**found, "rewards/time_share": rewards / max(total, 1e-9)}

    def warn_of_slow_rewards(self, rewards: Sequence[BatchReward]) -> None:
        """Say once, with what to do about it, that rewards took more than MAX_SHARE of the last steps."""
        in_rewards, in_all = (sum(seconds) for seconds in zip(*self._last_steps, strict=True))
        share = in_rewards / max(in_all, 1e-9)
        if self._has_said_slow or len(self._last_steps) < NUM_STEPS or share <= MAX_SHARE:
            return
        self._has_said_slow = True
        advice = "reward_workers.rewards computes rewards in other processes"
        if rewards:
            slowest = max(rewards, key=lambda reward: reward.seconds)
            name = slowest.__name__
            advice = f"{name} takes most of it; " + (
                f"reward_workers.rewards=[{name}] computes it in other processes"
                if slowest.workers is None
                else "raise reward_workers.num_workers"
            )
        logger.warning("rewards took %.0f %% of the last %d steps: %s", 100 * share, NUM_STEPS, advice)
