"""One step ahead: the next batch is drawn by the weights of the step before, weighed by its own policy, and part of a checkpoint.

A stand-in of a server draws here; the real one, its faults included, is in tests/generation/test_rounds.py.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from equal_runs import different

from tinyzero_trl.config import BatchingSettings, CurriculumSettings, ReplaySettings
from tinyzero_trl.failures import ServerLost
from tinyzero_trl.generation.sampler import sample
from tinyzero_trl.runs import record
from tinyzero_trl.storage import manifest
from tinyzero_trl.task import Outcome, Verdict
from tinyzero_trl.tasks.countdown import TASK
from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.problems import epoch_sampler


def new_model_like(model: Any) -> Any:
    """A model of the same shape; TRL binds a forward of its own to the trainer's, which a copy would take along."""
    return type(model)(model.config).eval()


class Server:
    """Draws by a copy of the weights that were sent last, and what was requested only when it is collected, as late as a server may."""

    is_ahead = True
    lost_at: int | None = None
    """Number of the request, from 0, whose completions are lost."""

    def __init__(self, *, model: Any, processing_class: Any, max_completion_length: int, **settings: Any):
        self.model, self.policy, self.tokenizer = model, new_model_like(model), processing_class
        self.max_new_tokens = max_completion_length
        self.is_in_flight = False
        self.weights_step = self.num_faults = self.num_requests = 0
        self.seconds_to_sync = self.seconds_to_generate = 0.5
        self.drawn: list[tuple[float, int]] = []
        """Temperature and the optimizer steps behind the weights, by rollout."""

    def prepare(self, *, seeds: Any, eos_token_ids: Any, stop: Any, temperature: float, step: int) -> None:
        assert not self.is_in_flight
        self.seeds, self.ends, self.temperature, self.step = seeds, eos_token_ids, temperature, step

    def awake(self) -> Any:
        return contextlib.nullcontext()

    def sync_weights(self) -> None:
        assert not self.is_in_flight
        self.policy.load_state_dict(self.model.state_dict())
        self.weights_step = self.step

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any) -> Any:
        assert not self.is_in_flight
        ids, logprobs = self._draw(prompts)
        return prompts, ids, [[[each] for each in row] for row in logprobs], None

    def request(self, prompts: Any) -> None:
        assert not self.is_in_flight
        self.is_in_flight, self.prompts = True, prompts
        self.num_requests += 1

    def collect(self) -> Any:
        assert self.is_in_flight
        self.is_in_flight = False
        if self.lost_at == self.num_requests - 1:
            raise ServerLost("the server is lost")
        return self._draw(self.prompts)

    def _draw(self, prompts: Any) -> Any:
        self.drawn.append((self.temperature, self.weights_step))
        sampled = sample(
            self.policy,
            prompts,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seeds=self.seeds,
            eos_token_ids=self.ends,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return sampled.completion_ids, sampled.logprobs


def is_lucky(text: str) -> bool:
    """About one in three of the texts that random weights write."""
    return len(text) % 3 == 0


def luck(completions: list[str], **columns: object) -> list[float]:
    return [float(is_lucky(text)) for text in completions]


def verify(response: str, **columns: object) -> Verdict:
    return Verdict(Outcome.correct if is_lucky(response) else Outcome.wrong_value)


class Synchronous(Server):
    is_ahead = False


AHEAD: dict[str, Any] = {"vllm_generation": Server, "use_vllm": True, "task": TASK}
LUCKY = {"task": dataclasses.replace(TASK, verify=verify), "reward_funcs": luck, "max_completion_length": 4}


def problems(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(num)]


def rollouts(folder: Path) -> list[dict[str, Any]]:
    shards = (folder / "rollouts").glob("train-*.parquet")
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    return sorted(rows, key=lambda row: (row["generation"], row["problem"], row["seed"]))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps_per_generation": 1},
        {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "num_iterations": 2},
        {"curriculum": CurriculumSettings(by="target", kind="order")},
    ],
    ids=["a batch a step", "two batches a step", "four steps a batch", "a curriculum"],
)
def test_each_batch_has_the_problems_and_seeds_it_would_have_and_the_weights_of_the_batch_before(
    changes: dict[str, Any], build: Any, tmp_path: Path
) -> None:
    settings = {**AHEAD, "rows": problems(10), "max_steps": 5, **changes}
    for server in (Synchronous, Server):
        folder = str(tmp_path / server.__name__)
        build(TinyZeroTrainer, **{**settings, "vllm_generation": server, "output_dir": folder}).train()
    before, after = rollouts(tmp_path / "Synchronous"), rollouts(tmp_path / "Server")
    same = ("prompt", "seed", "step", "generation", "problem")
    assert [[row[key] for key in same] for row in after] == [[row[key] for key in same] for row in before]
    batches: dict[int, set[tuple[int, int]]] = {}
    for then, now in zip(before, after, strict=True):
        batches.setdefault(now["generation"], set()).add((then["weights_step"], now["weights_step"]))
    assert all(len(found) == 1 for found in batches.values()), "one policy draws a whole batch"
    synchronous, ahead_of_it = zip(*(found.pop() for found in batches.values()), strict=True)
    assert ahead_of_it == (synchronous[0], *synchronous[:-1])


def test_an_evaluation_waits_for_the_batch_in_flight_and_answers_by_the_newest_weights(
    build: Any, tmp_path: Path
) -> None:
    settings = {**AHEAD, "max_steps": 4, "temperature": 0.9}
    on_the_way = {"eval_strategy": "steps", "eval_steps": 1, "eval_rows": problems(4), "num_generations_eval": 1}
    on_the_way |= {"per_device_eval_batch_size": 4, "evaluation": None}
    alone = build(TinyZeroTrainer, **settings, output_dir=str(tmp_path / "alone"))
    alone.train()
    evaluated = build(TinyZeroTrainer, **settings, **on_the_way, output_dir=str(tmp_path / "evaluated"))
    evaluated.train()
    assert rollouts(tmp_path / "evaluated") == rollouts(tmp_path / "alone"), "it disturbs nothing"
    for step in range(1, 5):
        shard = tmp_path / "evaluated" / "rollouts" / f"eval-{step:08d}.parquet"
        assert {row["weights_step"] for row in pq.read_table(shard).to_pylist()} == {step}


def test_a_greedy_baseline_and_fresh_prompts_are_by_the_newest_weights(build: Any, tmp_path: Path) -> None:
    remax = build(TinyZeroTrainer, **AHEAD, algorithm="remax", loss_type="dr_grpo", max_steps=3)
    remax.train()
    drawn = remax.vllm_generation.drawn
    assert drawn == [(0.0, 0), (1.0, 0), (1.0, 0), (0.0, 1), (1.0, 1), (0.0, 2)]
    settings = {**AHEAD, **LUCKY, "dynamic_sampling_rounds": 1, "max_steps": 3}
    build(TinyZeroTrainer, **settings, output_dir=str(tmp_path / "filled")).train()
    batches = sorted({(row["step"], row["generation"], row["weights_step"]) for row in rollouts(tmp_path / "filled")})
    assert len(batches) > 3, "some groups were replaced"
    first = {step: min(generation for at, generation, _ in batches if at == step) for step in (1, 2, 3)}
    for step, generation, weights_step in batches:
        assert weights_step == (max(step - 2, 0) if generation == first[step] else step - 1)


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "a batch a step": ({}, 3),
    "inside a cycle": ({"num_iterations": 2}, 3),
    "two batches a step, into the next epoch": ({"steps_per_generation": 1, "rows": 6}, 3),
    "the curriculum's order by success": (
        LUCKY | {"curriculum": CurriculumSettings(by="success", kind="order"), "rows": 8},
        3,
    ),
    "dynamic sampling, replay, evaluation": (
        LUCKY
        | {
            "replay": ReplaySettings(num_groups=4),
            "dynamic_sampling_rounds": 1,
            "eval_strategy": "steps",
            "eval_steps": 2,
        },
        4,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, build: Any, tmp_path: Path) -> None:
    """The batch that was drawn by older weights is in the checkpoint; the weights are not."""
    changes, stop = dict(CASES[name][0]), CASES[name][1]
    rows = problems(changes.pop("rows", 16))
    settings = {**AHEAD, "max_steps": 6, "save_strategy": "steps", "save_steps": 1, "rows": rows, **changes}
    settings |= {"output_dir": str(tmp_path / "run"), "eval_rows": rows[:8]}
    build(TinyZeroTrainer, **settings).train()
    kept = tmp_path / "straight"
    shutil.copytree(tmp_path / "run", kept)
    for step in range(stop + 1, 7):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
        for shard in (tmp_path / "run" / "rollouts").glob(f"*-{step:08d}*"):
            shard.unlink()
    record.cut_metrics(tmp_path / "run", step=stop)
    build(TinyZeroTrainer, **settings).train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert different(tmp_path / "run", kept) == []


def test_a_run_that_is_to_go_further_than_its_end_is_the_longer_run(build: Any, tmp_path: Path) -> None:
    settings = {**AHEAD, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    build(TinyZeroTrainer, **settings, max_steps=6, output_dir=str(tmp_path / "long")).train()
    for num_steps, start in ((3, None), (6, str(tmp_path / "short" / "checkpoint-3"))):
        trainer = build(TinyZeroTrainer, **settings, max_steps=num_steps, output_dir=str(tmp_path / "short"))
        trainer.train(resume_from_checkpoint=start)
    assert rollouts(tmp_path / "short") == rollouts(tmp_path / "long")


@pytest.mark.parametrize("found_at", ["the next step", "a save"])
def test_a_server_lost_with_a_batch_saves_the_run_which_draws_the_same_rows_by_newer_weights(
    found_at: str, build: Any, tmp_path: Path
) -> None:
    class Lost(Server):
        lost_at = 2

    settings = {**AHEAD, **LUCKY, "curriculum": CurriculumSettings(by="success", kind="weight"), "max_steps": 5}
    settings |= {"save_strategy": "steps", "save_steps": 3 if found_at == "a save" else 10}
    build(TinyZeroTrainer, **settings, output_dir=str(tmp_path / "straight")).train()
    with pytest.raises(ServerLost, match="the server is lost; checkpoint-3 is saved"):
        build(TinyZeroTrainer, **{**settings, "vllm_generation": Lost}, output_dir=str(tmp_path / "run")).train()
    checkpoint = manifest.newest_usable(tmp_path / "run").path
    assert checkpoint == tmp_path / "run" / "checkpoint-3"
    resumed = build(TinyZeroTrainer, **settings, output_dir=str(tmp_path / "run"))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    ours, theirs = ([row for row in rollouts(tmp_path / name) if row["step"] <= 4] for name in ("run", "straight"))
    assert [(row["prompt"], row["seed"]) for row in ours] == [(row["prompt"], row["seed"]) for row in theirs]
    assert [row["completion"] for row in ours[:48]] == [row["completion"] for row in theirs[:48]]
    assert {row["weights_step"] for row in ours[48:]} == {3}
    assert {row["weights_step"] for row in theirs[48:]} == {2}
    assert {row["weights_step"] for row in rollouts(tmp_path / "run") if row["step"] == 5} == {3}


@pytest.mark.parametrize("deals", [True, False], ids=["dealt", "TRL's slices"])
@pytest.mark.parametrize("corrects", [True, False], ids=["correction", "no correction"])
def test_the_gradient_is_that_of_the_clipped_ratio_to_the_policy_that_drew(
    deals: bool, corrects: bool, build: Any, tmp_path: Path
) -> None:
    """PPO's eq. 7 by hand: log-probabilities from the logits of both policies, min and clip written out, differentiated by torch."""
    off = BatchingSettings(skip_constant_groups=False, sort_by_length=False, fold_old_logprobs=False)
    settings = {**AHEAD, "loss_type": "dr_grpo", "scale_rewards": "none", "learning_rate": 1e-2, "max_steps": 2}
    settings |= {"max_grad_norm": 0.0}  # gradients as they are
    settings |= {"vllm_importance_sampling_correction": corrects, "vllm_importance_sampling_clip_max": 1.01}
    settings |= {} if deals else {"batching": off}
    trainer = build(TinyZeroTrainer, **settings)
    begun, batches, gradients = [], [], []
    complete, judge = trainer._generate_and_score_completions, trainer._get_grad_norm

    def kept(inputs: Any) -> Any:
        begun.append(copy.deepcopy(trainer.model.state_dict()))
        batches.append(complete(inputs))
        return batches[-1]

    def judged(model: Any, *args: Any, **kwargs: Any) -> Any:
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        return judge(model, *args, **kwargs)

    trainer._generate_and_score_completions, trainer._get_grad_norm = kept, judged
    trainer.train()
    (first, second), batch = begun, batches[1]

    now, then = new_model_like(trainer.model), new_model_like(trainer.model)
    now.load_state_dict(second)
    then.load_state_dict(first)  # the second batch was requested before the first update
    ids, mask = batch["completion_ids"], batch["completion_mask"]

    def logps_of(model: Any) -> torch.Tensor:
        whole = torch.cat([batch["prompt_ids"], ids], 1)
        attention = torch.cat([batch["prompt_mask"], mask], 1)
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=whole, attention_mask=attention, position_ids=positions).logits
        logps = torch.log_softmax(logits[:, batch["prompt_ids"].shape[1] - 1 : -1], -1)
        return logps.gather(2, ids[:, :, None])[:, :, 0]

    with torch.no_grad():
        behaviour = logps_of(then)
    ratio = torch.exp(logps_of(now) - behaviour)
    moved = ratio[mask.bool()]
    assert (moved > 1.2).any()
    assert (moved < 0.8).any()
    advantages = batch["advantages"][:, None]
    objective = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    (-(objective * mask).sum() / (len(ids) * trainer.max_completion_length)).backward()
    for name, parameter in now.named_parameters():
        torch.testing.assert_close(gradients[1][name], parameter.grad, rtol=1e-3, atol=1e-7)
    if deals:
        gap = trainer.state.log_history[1]["sampling/sampling_logp_difference/max"]
        assert gap == pytest.approx(float(moved.detach().log().abs().max()), rel=1e-3)


def test_the_batches_of_a_sampler_are_those_it_brings(build: Any) -> None:
    trainer = build(TinyZeroTrainer, rows=problems(11))
    sampler = epoch_sampler(trainer._get_train_sampler())
    brought = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        brought += list(sampler)[:: trainer.num_generations]
    size = sampler.batch_size
    repeats = sampler.repeat_count
    batches = [brought[at : at + size] for at in range(0, len(brought), size)][::repeats]
    numbers = list(range(len(batches)))
    assert [sampler.batch(number) for number in reversed(numbers)] == batches[::-1]
