"""The trainer of every RL run."""

from __future__ import annotations

from tinyzero_trl.trainer.prefill import Prefill
from tinyzero_trl.trainer.rollouts import Rollouts


class TinyZeroTrainer(Rollouts, Prefill):
    """GRPOTrainer with rollouts kept, exact zero advantages, open assistant turns, guards and sealed checkpoints."""
