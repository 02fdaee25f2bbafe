"""Rewards that are not numbers, gradients that are not finite, runs that cannot learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tinyzero_trl.failures import NumericFailure, RewardFailure
from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.non_finite import MAX_RECORDS, write_bad_step


class AfterStep(TrainerCallback):
    """Calls a function as each step ends."""

    def __init__(self, call: Callable[[], None]):
        self.call = call

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.call()


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def spoiled(bad: float | None) -> Any:
    """A reward that gives `bad` to the first completion of each batch."""

    def reward(completions: list[str], **columns: Any) -> list[float | None]:
        return [bad, *(1.0 / (1 + len(text)) for text in completions[1:])]

    return reward


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan, 1e38, None])
def test_a_reward_that_is_no_number_leaves_weights_finite(build: Any, bad: float | None) -> None:
    trainer = build(TinyZeroTrainer, reward_funcs=spoiled(bad), scale_rewards="none")
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    entries = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert all(abs(entry["reward"]) <= 1 for entry in entries)
    if bad is not None and not math.isnan(bad):
        assert [entry["rewards/out_of_range"] for entry in entries] == [pytest.approx(1 / 16)] * 2


def test_a_run_without_a_single_score_stops_and_shows_samples(build: Any) -> None:
    def nothing(completions: list[str], **columns: Any) -> list[None]:
        return [None] * len(completions)

    trainer = build(TinyZeroTrainer, reward_funcs=nothing, max_steps=10)
    with pytest.raises(RewardFailure, match="no reward function gave a number") as stop:
        trainer.train()
    assert trainer.state.global_step == 2
    assert str(stop.value).count("completion:") == 3


def test_a_run_in_which_nothing_earns_anything_stops_after_the_batches_the_recipe_says(build: Any) -> None:
    def zero(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    with pytest.raises(RewardFailure, match="first 4 batches") as stop:
        build(TinyZeroTrainer, reward_funcs=zero, max_steps=10, give_up_after=4).train()
    assert stop.value.exit_code == 3
    build(TinyZeroTrainer, reward_funcs=zero, max_steps=5, give_up_after=0).train()


def test_penalties_that_differ_are_something_to_learn_from(build: Any) -> None:
    def penalty(completions: list[str], **columns: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    trainer = build(TinyZeroTrainer, reward_funcs=penalty, max_steps=4, give_up_after=2)
    trainer.train()
    assert trainer.state.global_step == 4


def poison(trainer: Any, *, steps: set[int]) -> None:
    """A NaN in one gradient at these steps."""
    compute = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        return loss * float("nan") if trainer.state.global_step + 1 in steps else loss

    trainer.compute_loss = compute_loss


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_and_the_next_goes_on(build: Any) -> None:
    """T-1."""
    trainer = build(TinyZeroTrainer, max_steps=3)
    poison(trainer, steps={2})
    seen: list[torch.Tensor] = []
    log = trainer.log

    def spy(logs: dict[str, float], start_time: float | None = None) -> None:
        seen.append(trainer.model.model.norm.weight.detach().clone())
        log(logs, start_time)

    trainer.log = spy
    trainer.train()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    skipped = [entry["skipped_steps"] for entry in trainer.state.log_history if "skipped_steps" in entry]
    assert skipped == [0.0, 1.0, 0.0]


def spoil_loss(trainer: Any, *, steps: set[int], value: float) -> None:
    """A loss of this value, in the second micro-batch of these steps."""
    compute = trainer._compute_loss
    seen: list[int] = []

    def _compute_loss(model: Any, inputs: Any) -> Any:
        loss = compute(model, inputs)
        seen.append(trainer.state.global_step + 1)
        return loss + value if trainer.model.training and seen[-1] in steps and seen.count(seen[-1]) == 2 else loss

    trainer._compute_loss = _compute_loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_skips_the_step_keeps_its_batch_and_is_seen_in_the_log(
    build: Any, value: float
) -> None:
    trainer = build(TinyZeroTrainer, max_steps=3)
    spoil_loss(trainer, steps={2}, value=value)
    start = weights_of(trainer)
    seen: list[dict[str, torch.Tensor]] = []
    trainer.add_callback(AfterStep(lambda: seen.append(weights_of(trainer))))
    trainer.train()
    assert not all(torch.equal(start[name], seen[0][name]) for name in start)
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in start)
    assert not all(torch.equal(seen[1][name], seen[2][name]) for name in start)
    entries = [entry for entry in trainer.state.log_history if "skipped_steps" in entry]
    assert [entry["skipped_steps"] for entry in entries] == [0.0, 1.0, 0.0]
    assert [math.isfinite(entry["loss"]) for entry in entries] == [True, False, True]

    folder = Path(trainer.args.output_dir) / "faults"
    record = json.loads((folder / "non-finite-step-2-rank-0.json").read_text())
    assert record["losses"][1] == str(value)
    assert isinstance(record["losses"][0], float)
    assert record["grad_norm"] == "nan"
    assert "model.norm.weight" in record["gradients_not_finite"]
    assert record["tensors_not_finite"] == []
    assert all(text["prompt"].endswith("=") for chunk in record["texts"] for text in chunk)
    tensors = load_file(folder / "non-finite-step-2-rank-0.safetensors")
    assert {"0/completion_ids", "0/advantages", "1/completion_ids"} <= tensors.keys()


def test_a_tensor_of_the_batch_that_is_not_finite_is_named_and_the_number_of_records_has_a_bound(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ids = torch.tensor(tokenizer("ab")["input_ids"])[None]
    mask = torch.ones_like(ids)
    chunk = {"prompt_ids": ids, "prompt_mask": mask, "completion_ids": ids, "completion_mask": mask}
    chunk["advantages"] = torch.tensor([math.inf])
    given = {"rank": 1, "losses": [1.0], "grad_norm": math.nan, "parameters": [], "tokenizer": tokenizer}
    written = [write_bad_step(tmp_path, [chunk], step=step, **given) for step in range(MAX_RECORDS + 2)]
    assert sum(path is not None for path in written) == MAX_RECORDS
    record = json.loads((tmp_path / "faults" / "non-finite-step-0-rank-1.json").read_text())
    assert record["tensors_not_finite"] == ["0/advantages"]
    assert record["texts"] == [[{"prompt": "ab", "completion": "ab"}]]


def test_what_is_counted_goes_on_after_a_resume(build: Any) -> None:
    trainer = build(TinyZeroTrainer, max_steps=1)
    trainer.non_finite.num_skipped, trainer.reward_watch.num_batches, trainer.reward_watch.has_earned = 2, 7, True
    other = build(TinyZeroTrainer, max_steps=1)
    other.load_resume_state(trainer.resume_state())
    assert (other.non_finite.num_skipped, other.reward_watch.num_batches, other.reward_watch.has_earned) == (2, 7, True)
    assert other.resume_state() == trainer.resume_state()


def test_three_such_steps_in_a_row_end_the_run_with_the_weights_from_before(build: Any) -> None:
    """T-1."""
    trainer = build(TinyZeroTrainer, max_steps=9)
    poison(trainer, steps={2, 3, 4})
    with pytest.raises(NumericFailure, match="3 steps in a row") as stop:
        trainer.train()
    assert stop.value.exit_code == 4
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
