"""Old log-probabilities come from the loss's own pass, and everything made of them is what TRL makes of a pass of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from forced_runs import SAMPLED, forced, now_and_then, trained
from trl import GRPOTrainer

from tinyzero_trl.config import BatchingSettings
from tinyzero_trl.trainer import TinyZeroTrainer

MODES = ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def as_with_vllm(trainer: Any) -> Any:
    """HF weights and drawn sampling log-probabilities stand in for vLLM: the trainer is told of it once it is built."""
    forced(trainer, logps=True, stretch=4.0)
    trainer.use_vllm = True
    return trainer


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_importance_sampling_correction_is_trls_in_every_mode(build: Any, mode: str, fold: bool) -> None:
    settings = {**SAMPLED, "vllm_importance_sampling_mode": mode, "num_iterations": 2, "steps_per_generation": 4}
    settings |= {"vllm_importance_sampling_clip_min": 0.7, "vllm_importance_sampling_clip_max": 1.5}
    theirs = trained(as_with_vllm(build(GRPOTrainer, reward_funcs=now_and_then, **settings)))
    batching = BatchingSettings(fold_old_logprobs=fold)
    ours = trained(as_with_vllm(build(TinyZeroTrainer, reward_funcs=now_and_then, batching=batching, **settings)))
    assert (theirs - ours).abs().max() <= 1e-6


def test_sampling_metrics_are_trls_where_no_row_is_left_out(build: Any) -> None:
    settings = {**SAMPLED, "max_steps": 1, "vllm_importance_sampling_mode": "token_truncate"}
    logs = []
    for trainer_class, extras in (
        (GRPOTrainer, {}),
        (TinyZeroTrainer, {"batching": BatchingSettings(skip_constant_groups=False)}),
    ):
        trainer = as_with_vllm(build(trainer_class, reward_funcs=now_and_then, **settings, **extras))
        trainer.train()
        logs.append({key: value for key, value in trainer.state.log_history[0].items() if key.startswith("sampling/")})
    assert len(logs[0]) == 5
    # A chunk's average counts for all its tokens, also the few whose sampling log-probability is unknown.
    assert logs[1] == pytest.approx(logs[0], rel=1e-2)


def test_the_gap_between_sampler_and_trainer_is_logged_without_vllm_too(build: Any) -> None:
    trainer = forced(build(TinyZeroTrainer, reward_funcs=now_and_then, max_steps=2), logps=True)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        gap = "sampling/sampling_logp_difference"
        assert 0 < entry[f"{gap}/mean"] < entry[f"{gap}/max"]
        assert "sampling/importance_sampling_ratio/mean" not in entry


@pytest.mark.parametrize("fold", [True, False])
def test_folding_leaves_no_pass_without_gradient(build: Any, fold: bool) -> None:
    batching = BatchingSettings(fold_old_logprobs=fold)
    trainer = as_with_vllm(build(TinyZeroTrainer, reward_funcs=now_and_then, batching=batching, **SAMPLED))
    has_gradient = []
    trainer.model.register_forward_hook(lambda *ignored: has_gradient.append(torch.is_grad_enabled()))
    trainer.train()
    assert has_gradient.count(True) > 0
    assert has_gradient.count(False) == (0 if fold else has_gradient.count(True))


def test_log_probabilities_of_any_rows_are_those_of_one_padded_pass(build: Any) -> None:
    trainer = forced(build(TinyZeroTrainer, beta=0.1, batching=BatchingSettings(max_tokens_per_microbatch=40)))
    trainer.model.train()
    batch = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])
    assert "ref_per_token_logps" not in batch
    expected, _, _ = GRPOTrainer._get_per_token_logps_and_entropies(
        trainer,
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
        batch["completion_ids"].size(1),
    )
    for logps in (trainer.policy_logps(batch), trainer.reference_logps(batch)):
        assert not logps.requires_grad
        torch.testing.assert_close(logps, expected.detach(), atol=1e-5, rtol=0)
