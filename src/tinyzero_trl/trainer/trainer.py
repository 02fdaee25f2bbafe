"""The trainer of every RL run."""

from __future__ import annotations

from tinyzero_trl.trainer.advantages import ExactAdvantages
from tinyzero_trl.trainer.batching import Batching
from tinyzero_trl.trainer.checkpoints import Checkpoints
from tinyzero_trl.trainer.guards import Guards
from tinyzero_trl.trainer.interrupts import Interrupts
from tinyzero_trl.trainer.prefill import Prefill
from tinyzero_trl.trainer.progress import ShownProgress
from tinyzero_trl.trainer.rollouts import Rollouts
from tinyzero_trl.trainer.state import ResumableState


class TinyZeroTrainer(
    Rollouts, ExactAdvantages, Guards, Checkpoints, Interrupts, ShownProgress, Batching, Prefill, ResumableState
):
    """GRPOTrainer with rollouts kept, exact zero advantages, even micro-batches, guards and sealed checkpoints.

    Order matters: Rollouts, outermost, writes what ExactAdvantages corrected from the rewards Guards let through.
    """
