"""The trainer of every RL run."""

from __future__ import annotations

from typing import Any

from tinyzero_trl.config import BatchingSettings, CriticSettings, CurriculumSettings, EvaluationSettings, ReplaySettings
from tinyzero_trl.trainer.adapter import Adapter
from tinyzero_trl.trainer.batching import Batching
from tinyzero_trl.trainer.budget import Budget
from tinyzero_trl.trainer.checkpoints import Checkpoints
from tinyzero_trl.trainer.critic import Critic
from tinyzero_trl.trainer.curriculum import Curriculum
from tinyzero_trl.trainer.dynamic_sampling import DynamicSampling
from tinyzero_trl.trainer.estimators import Estimators
from tinyzero_trl.trainer.generating import Generating
from tinyzero_trl.trainer.guards import Guards
from tinyzero_trl.trainer.held_out import HeldOut
from tinyzero_trl.trainer.interrupts import Interrupts
from tinyzero_trl.trainer.logprobs import Logprobs
from tinyzero_trl.trainer.offload import Offload
from tinyzero_trl.trainer.prefill import Prefill
from tinyzero_trl.trainer.progress import ShownProgress
from tinyzero_trl.trainer.replay import Replay
from tinyzero_trl.trainer.reward_workers import RewardWorkers
from tinyzero_trl.trainer.rollouts import Rollouts
from tinyzero_trl.trainer.state import ResumableState
from tinyzero_trl.trainer.stopping import Stopping


class TinyZeroTrainer(
    Batching,
    Replay,
    Curriculum,
    DynamicSampling,
    HeldOut,
    Rollouts,
    Critic,
    Estimators,
    Logprobs,
    RewardWorkers,
    Guards,
    Checkpoints,
    Interrupts,
    ShownProgress,
    Budget,
    Generating,
    Offload,
    Prefill,
    Adapter,
    ResumableState,
    Stopping,
):
    """GRPOTrainer with rollouts kept, exact zero advantages, even micro-batches, guards and sealed checkpoints.

    Order matters: Batching, outermost, deals what the others have made of a batch, and its chunks
    pass through Guards one by one; Replay fills what is left without signal;
    Curriculum chooses the problems that all others see; DynamicSampling calls all the rest once a round; Rollouts writes what
    Critic, or Estimators, made of the rewards Guards let through.
    """

    def __init__(
        self,
        *args: Any,
        algorithm: str = "grpo",
        advantage_whitening: str | None = None,
        soft_overlong_tokens: int = 0,
        dynamic_sampling_rounds: int = 0,
        batching: BatchingSettings | None = None,
        critic: CriticSettings | None = None,
        curriculum: CurriculumSettings | None = None,
        evaluation: EvaluationSettings | None = None,
        replay: ReplaySettings | None = None,
        **kwargs: Any,
    ):
        """What a recipe's own keys say, by the same names (settings.features); the rest is GRPOTrainer's and the mixins'."""
        self.algorithm = algorithm
        self.advantage_whitening = advantage_whitening
        self.soft_overlong_tokens = soft_overlong_tokens
        self.dynamic_sampling_rounds = dynamic_sampling_rounds
        self.batching = batching or BatchingSettings()
        self.critic_settings = critic or CriticSettings()
        self.curriculum_settings = curriculum or CurriculumSettings()
        self.evaluation = evaluation or EvaluationSettings()
        self.replay_settings = replay or ReplaySettings()
        super().__init__(*args, **kwargs)
