"""The trainer of every RL run. Read from top to bottom, it is the algorithm:

    choose problems -> generate -> verify and score -> advantages -> fill groups without signal (fresh prompts, replay)
    -> record -> deal micro-batches -> loss -> guard -> step -> save

The class overrides each seam of TRL's GRPOTrainer once, and calls TRL's own method there once; contract tests hash what it stands on.
With all features off a run is TRL's bit for bit, but for groups of equal rewards, whose advantages are exactly 0 here.
Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import DistributedType, gather_object
from transformers import SchedulerType, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.training_args import OptimizerNames
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer import grpo_trainer
from trl.trainer.utils import use_adapter

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.algorithms.dapo import soft_overlong_penalty
from tinyzero_trl.config import (
    BatchingSettings,
    CriticSettings,
    CurriculumSettings,
    EvaluationSettings,
    ReplaySettings,
    check_shared_prompts,
)
from tinyzero_trl.failures import ConfigError, DiskFull, ServerLost
from tinyzero_trl.models import StopStrings, adapters, is_truncated, matching_ids, prompts_ids
from tinyzero_trl.rewards import BatchReward
from tinyzero_trl.rollout import ROW_INDEX, Rollout
from tinyzero_trl.seeding import row_seeds
from tinyzero_trl.task import Task
from tinyzero_trl.trainer import checkpoints, logprobs, microbatches, recording, state, truncation
from tinyzero_trl.trainer.advantages import constant_completions, estimated, mean_per_row, weighted, whitened
from tinyzero_trl.trainer.ahead import Drawn, NextBatch, take_sampler_as_old
from tinyzero_trl.trainer.batches import Batch, lengths, loss_mask
from tinyzero_trl.trainer.critic import Critic, make_critic
from tinyzero_trl.trainer.dynamic_sampling import filled
from tinyzero_trl.trainer.ending import Signals, TokenBudget
from tinyzero_trl.trainer.microbatches import MEAN_OVER_ROWS, SUM_OVER_TOKENS, Cut, OptimizerStep
from tinyzero_trl.trainer.non_finite import NonFiniteSteps, nan_where_not_finite
from tinyzero_trl.trainer.offload import HostMemory, keep_state_on_host, on_host
from tinyzero_trl.trainer.problems import Problems, epoch_sampler
from tinyzero_trl.trainer.progress import StepProgress
from tinyzero_trl.trainer.recording import Generated, Shards
from tinyzero_trl.trainer.replay import ReplayBuffer, fill_in_old
from tinyzero_trl.trainer.scoring import RewardWatch, out_of_range
from tinyzero_trl.trainer.shared_prompts import SharedPrompts, prompt_numbers
from tinyzero_trl.trainer.timing import StepClock

logger = logging.getLogger(__name__)
Rows = list[dict[str, Any]]
"""Rows of the data set, each repeated for every completion of its prompt."""


class Engine(Protocol):
    """The interface of vLLM that the trainer calls itself; TRL calls `generate` and `sync_weights` of its VLLMGeneration.

    generation/server_generation.py and generation/colocated.py implement it as subclasses of that class, which TRL constructs.
    """

    is_ahead: bool
    """True for a ServerEngine that is to generate the next batch while one is trained."""
    weights_step: int
    """Optimizer steps behind the weights of the last rollout."""
    num_faults: int
    """Failures while the last batch was generated."""
    seconds_to_sync: float
    """Time of the last transfer of weights."""

    def prepare(
        self, *, seeds: Sequence[int], eos_token_ids: Sequence[int], stop: Sequence[str], temperature: float, step: int
    ) -> None:
        """Say what the next rollout is drawn with, before weights are synchronised for it."""

    def awake(self) -> AbstractContextManager[None]:
        """A block in which weights stay where they are from one rollout to the next."""


class ServerEngine(Engine, Protocol):
    """An engine that generates while the trainer trains."""

    is_in_flight: bool
    """True between `request` and `collect`."""
    seconds_to_generate: float
    """Time of the server for the last rollout."""

    def sync_weights(self) -> None:
        """Send the weights as they are."""

    def request(self, prompts: list[list[int]]) -> None:
        """Begin the next rollout by the weights that were sent last; until `collect`, nothing else may be asked."""

    def collect(self) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and log-probabilities of this process's rows, as soon as they are there. Raises: ServerLost, DiskFull."""


class TinyZeroTrainer(GRPOTrainer):
    """GRPOTrainer with rollouts kept, exact zero advantages, even micro-batches, guards and sealed checkpoints."""

    weights_step: int | None = None
    """Optimizer steps behind the weights that made the last rollout; None where the rollout function does not say."""
    rollout_temperature: float | None = None
    """Temperature in the place of args.temperature; set only during an extra rollout, which is not recorded (0 is greedy)."""
    num_generated_batches: int = 0
    """Training batches so far, each round of dynamic sampling one; extra rollouts do not count."""
    num_generated_tokens: int = 0
    """Completion tokens of all processes so far, those of evaluation left out."""
    batch_number: int = 0
    """Number of the batch being generated: training batches are counted through, those of each evaluation from 0."""
    batch_seeds: list[int] | None = None
    """A seed for each of this process's rows; None where another rollout function draws without them."""
    kl_in_reward: float = 0.0
    """trainer.beta, where the method has the divergence in its reward and not in its loss."""
    rewards_NF: torch.Tensor
    """Rewards of the last batch, NaN where a function gave none."""

    # TRL's own, set anew here.
    beta: float
    train_dataset: Any
    vllm_importance_sampling_correction: bool
    _buffered_inputs: Any
    _last_loaded_step: int
    _pending_metrics: defaultdict[str, list[Any]]
    _pending_extra_logs: defaultdict[str, list[Any]]

    def __init__(
        self,
        *args: Any,
        algorithm: str = "grpo",
        advantage_whitening: str | None = None,
        kl_tokens: str | None = None,
        soft_overlong_tokens: int = 0,
        dynamic_sampling_rounds: int = 0,
        give_up_after: int = 0,
        max_generated_tokens: int | None = None,
        offload: bool = False,
        stop: Sequence[str] = (),
        batching: BatchingSettings | None = None,
        critic: CriticSettings | None = None,
        curriculum: CurriculumSettings | None = None,
        evaluation: EvaluationSettings | None = None,
        replay: ReplaySettings | None = None,
        task: Task | None = None,
        seconds_before: float = 0.0,
        vllm_generation: Callable[..., Any] | None = None,
        **kwargs: Any,
    ):
        """Keys of a recipe by the same names (settings.features), and GRPOTrainer's own arguments.

        give_up_after: generation batches in which nothing earns anything before the run stops; 0 never stops. max_generated_tokens: training
        stops after the step that reaches it; None: steps or epochs decide. stop: strings that end a completion. task: verifies every
        response; None records nothing. seconds_before: earlier attempts took. vllm_generation: makes an Engine from the arguments
        of TRL's VLLMGeneration, where args.use_vllm is set; None is TRL's own.
        """
        self.algorithm = algorithm
        self.advantage_whitening = advantage_whitening
        self.soft_overlong_tokens = soft_overlong_tokens
        self.dynamic_sampling_rounds = dynamic_sampling_rounds
        self.max_generated_tokens = max_generated_tokens
        self.offload = offload
        self.batching = batching or BatchingSettings()
        self.critic_settings = critic or CriticSettings()
        self.curriculum_settings = curriculum or CurriculumSettings()
        self.evaluation = evaluation or EvaluationSettings()
        self.replay_settings = replay or ReplaySettings()
        self.task = task
        self.critic: Critic | None = None
        self.clock = StepClock()
        self.reward_watch = RewardWatch(give_up_after=give_up_after)
        self.non_finite = NonFiniteSteps()
        self._began = time.monotonic() - seconds_before
        self._reference_on_host = HostMemory()
        self._inputs: Rows = []
        self._generated = Generated()
        self._next: NextBatch | None = None
        """The batch after the one being trained, with generation ahead."""
        self._seconds_ahead = 0.0
        """The server's time for the last rollout, if that was generated ahead."""
        self._rollouts: list[Rollout] = []
        """This process's rollouts of the batch under way, verified."""
        self._eval_rollouts: list[Rollout] = []
        self._greedy_rollouts: list[Rollout] = []
        self._num_eval_batches = 0
        self._optimizer_step = OptimizerStep()
        self._is_deferring_logps = False
        self._in_loss: Batch | None = None
        """The batch or chunk whose loss is being computed."""
        self._being_written: Path | None = None
        """Folder that holds a checkpoint while it is written."""
        self._restored_loss: dict[str, float] | None = None
        """The loss since the last log, of a checkpoint: transformers sets its own to 0 as training begins."""

        standing = grpo_trainer.VLLMGeneration
        grpo_trainer.VLLMGeneration = vllm_generation or standing
        try:
            super().__init__(*args, **kwargs)
        finally:
            grpo_trainer.VLLMGeneration = standing

        self._engine: Engine | None = self.vllm_generation if vllm_generation is not None and self.use_vllm else None
        is_ahead = self._engine is not None and self._engine.is_ahead
        self._server: ServerEngine | None = self.vllm_generation if is_ahead else None
        """The engine, if it generates ahead."""
        if self.batching.share_prompts:
            check_shared_prompts(self.model.config)
        self._masks_truncated = bool(stop) and self.args.mask_truncated_completions
        self.stop_strings = StopStrings(stop, self._tokenizer) if stop else None
        if stop:
            self.mask_truncated_completions = False  # TRL goes by the last token; `is_truncated` by stop strings too
        adapters.make_trainable(self.model, has_masters=self.accelerator.state.deepspeed_plugin is not None)
        self._takes_kl_V: torch.Tensor | None = None
        """True where the KL penalty is taken, by token of the vocabulary; None: at every token."""
        if kl_tokens is not None:
            self._takes_kl_V = torch.zeros(
                self.model.config.get_text_config().vocab_size, dtype=torch.bool, device=self.accelerator.device
            )
            self._takes_kl_V[matching_ids(self._tokenizer, kl_tokens)] = True
        if ALGORITHMS[algorithm].kl == "reward":
            # TRL made a reference model for it, and is to leave it alone from here on.
            self.kl_in_reward, self.beta = self.beta, 0.0
        if algorithm == "ppo":
            self.critic = make_critic(
                self.critic_settings,
                policy=self.model,
                args=self.args,
                tokens_at_once=self.batching.max_tokens_per_microbatch,
                device=self.accelerator.device,
            )
        if self.curriculum_settings.by is not None or dynamic_sampling_rounds:
            self.train_dataset = self.train_dataset.add_column(ROW_INDEX, list(range(len(self.train_dataset))))
        if self.curriculum_settings.by == "success" and task is None:
            raise ValueError("curriculum.by=success needs a task, which says what is solved")
        self.problems = Problems(self.train_dataset, self.curriculum_settings, seed=self.args.seed)
        self.replay = ReplayBuffer(self.replay_settings, num_generations=self.num_generations)
        self.shards = Shards(Path(self.args.output_dir))

        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(_RestoreLoss(self))
        self._budget: TokenBudget | None = None
        if max_generated_tokens is not None:
            self._budget = TokenBudget(max_generated_tokens, lambda: self.num_generated_tokens)
            self.add_callback(self._budget)
        self._progress = StepProgress(budget=max_generated_tokens)
        self.add_callback(self._progress)
        self._signals = Signals(self.accelerator)
        self.add_callback(self._signals)

    @property
    def interrupted_by(self) -> int:
        """The number of the signal that ended training, 0 if none did."""
        return self._signals.stopped_by

    # The run, and one step of it

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # the run that is continued did it
        try:
            with self._signals.noted():
                return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._progress.stop()
            for reward in self._batch_rewards():
                if reward.workers is not None:
                    reward.workers.close()

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = epoch_sampler(super()._get_train_sampler(dataset))
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> Any:
        # accelerate passes the epoch on to some ways of wrapping a sampler and not to others.
        self._sampler.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-step: TRL prepares its inputs (which generates, where a cycle begins), computes its loss and goes backward."""
        if self._optimizer_step.number != self.state.global_step:
            self._optimizer_step = OptimizerStep(self.state.global_step, has_signal=False)
        step, step.earlier_loss = self._optimizer_step, None
        # The last micro-step of an optimizer step; the last step of an epoch may have fewer of them than the others.
        is_last = self.accelerator.sync_gradients
        num_batches, is_fresh = self.num_generated_batches, self._is_between_cycles()
        with self.clock.training():
            try:
                loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
            except (ServerLost, DiskFull) as lost:
                # Every process is here, before anything of this step has happened but the draw of its problems.
                if not is_fresh or self.num_generated_batches != num_batches + 1 or not self.state.global_step:
                    raise
                self.num_generated_batches = num_batches
                self._save_checkpoint(model, None)
                raise type(lost)(f"{lost}; checkpoint-{self.state.global_step} is saved") from lost
            # `compute_loss` may have told DeepSpeed that this is no boundary. All others go by the flag as it was.
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            if self.critic is not None and is_last:
                self._add_metrics({f"critic/{name}": value for name, value in self.critic.learn().items()})
        if is_last:
            seconds = self.clock.end_step()
            is_shown = self.task is not None
            self._add_metrics({k: v for k, v in seconds.items() if is_shown or not k.startswith("seconds/")})
            if self.accelerator.is_main_process:
                self.clock.warn_of_slow_rewards(self._batch_rewards())
        step.position += 1
        return loss if step.earlier_loss is None else loss + step.earlier_loss

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """The rows of one micro-step: TRL rolls out where a cycle begins, shuffles and slices; then rows are dealt into chunks."""
        before = self._buffered_inputs
        # Where a batch has one rollout, vLLM sleeps right after it, before the forward passes that score it.
        has_several = self.algorithm == "remax" or self.dynamic_sampling_rounds > 0
        with self._awake() if has_several else nullcontext():
            inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training:
            return inputs
        slices, index = self._buffered_inputs, self._step % self.args.steps_per_generation
        is_new = slices is not before
        if is_new and self._server is not None:
            with self.clock.phase("generation"):
                self._request_next(self._server, num_rows=len(generation_batch))
        if self.critic is not None:
            if is_new:
                self.critic.begin_cycle(slices)
            self.critic.see(index)
        if not is_new or not self._may_deal():
            return inputs
        # So many micro-steps always belong to one optimizer step, however generation and accumulation interlock.
        unit = math.gcd(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        self._buffered_inputs = []
        for start in range(0, len(slices), unit):
            self._buffered_inputs += microbatches.dealt(
                slices[start : start + unit],
                drops_rows=self._may_drop(),
                loss_type=self.loss_type,
                needs_chunk=self.accelerator.num_processes > 1 or self._is_deepspeed,
                is_on_policy=self._optimizer_step.position + start < self.args.gradient_accumulation_steps,
                cut_rows=self._cut,
                complete=self._complete_chunk,
            )
        return self._buffered_inputs[index]

    # A generation batch: choose problems -> generate -> verify and score -> advantages -> fill -> record

    def _generate_and_score_completions(self, inputs: Rows) -> Batch:
        """A batch of rollouts with their advantages, from problems that the curriculum may choose, filled and recorded."""
        roll_out = partial(self._roll_out, super()._generate_and_score_completions)
        if not self.model.training:
            scored = roll_out(inputs)
            if self.evaluation.greedy and self.task is not None:
                self._greedy_rollouts += self._answered_greedily(inputs[:: self._group_size])
            return scored
        if self._next is not None:
            chosen = self._next.problems
            requested = self._rows_of(chosen, len(inputs))
            is_brought = [row["prompt"] for row in requested] == [row["prompt"] for row in inputs]
            assert is_brought or self.curriculum_settings.by is not None, "the data loader brings other problems"
            inputs = requested
        elif self.curriculum_settings.by is not None:
            chosen = self._next_of_curriculum(len(inputs))
            inputs = self._rows_of(chosen, len(inputs))
        if self.curriculum_settings.by is not None:
            self._add_metrics(self.problems.metrics(chosen))
        scored = roll_out(inputs)
        if self._is_vlm or not (self.dynamic_sampling_rounds or self.replay_settings.num_groups):
            return scored
        if self.dynamic_sampling_rounds:
            scored = self._with_fresh_prompts(scored, inputs, roll_out)
        if self.replay_settings.num_groups:
            scored = self._with_replayed(scored)
        scored["num_items_in_batch"] = self._over_processes(loss_mask(scored).sum()).sum()
        return scored

    def _roll_out(self, generate_and_score: Callable[[Rows], Batch], inputs: Rows) -> Batch:
        """One rollout of these rows, with advantages, recorded. generate_and_score: TRL's, which calls `_generate` and `_calculate_rewards`."""
        self._inputs = inputs
        baseline_P = self._greedy_rewards(inputs) if self._needs_greedy_baseline() else None
        if self.model.training:
            self.batch_number = self.num_generated_batches
            self.num_generated_batches += 1
        else:
            self.batch_number = self._num_eval_batches
            self._num_eval_batches += 1
        is_deferring = self.model.training and self._may_deal()
        with self._deferred_logps() if is_deferring else nullcontext():
            scored: Batch = generate_and_score(inputs)
        for key in ("old_per_token_logps", "ref_per_token_logps") if is_deferring else ():
            scored.pop(key, None)  # zeros, in the place of what was not computed
        if self._server is not None and self.model.training:
            take_sampler_as_old(scored)
        if self._masks_truncated:
            truncation.mask_truncated(scored, is_truncated=self.is_truncated)
            scored["num_items_in_batch"] = self._over_processes(loss_mask(scored).sum()).sum()
        scored["advantages"] = self._advantages(scored, baseline_P)
        if self.task is not None:
            with self.clock.phase("scoring"):
                scored["is_solved"] = self._record(scored)
        return scored

    def _generate(self, prompts: list[Any]) -> Any:
        """Completions of these prompts by TRL's way, which calls the rollout function or `_generate_single_turn`; counted and timed."""
        start = time.perf_counter()
        waits = self.offload and self.ref_model is not None
        with on_host(self.ref_model, self._reference_on_host) if waits else nullcontext():
            generated = super()._generate(prompts)
        prompt_ids, completion_ids, _, completions = generated[:4]
        if self.stop_strings is not None:
            found = truncation.length_metrics(
                completion_ids,
                is_truncated=self.is_truncated,
                ends=self._ends,
                gather=self.accelerator.gather,
                device=self.accelerator.device,
            )
            for name in found.keys() - {truncation.STOPPED}:
                self._metrics[self._mode][name].pop()  # TRL's, which knows end tokens alone
            self._add_metrics(found)
        if self.model.training:
            num_tokens = torch.tensor(sum(map(len, completion_ids)), device=self.accelerator.device)
            self.num_generated_tokens += int(self.accelerator.reduce(num_tokens, reduction="sum"))
        if self.rollout_temperature is None and len(completions) == len(self._inputs):
            columns = {key: [row[key] for row in self._inputs] for key in self._inputs[0]}
            for reward in self._batch_rewards():
                reward.submit(completions, columns)
        seconds = time.perf_counter() - start
        self.clock.seconds["generation"] += seconds
        self._generated = Generated(prompt_ids, completion_ids, completions, self._seconds_ahead or seconds)
        return generated

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """TRL's, but a last assistant message (a prefill) stays open, and bos is never doubled."""
        # TRL closes the assistant turn and opens a second one (add_generation_prompt=True always), and tokenises text
        # with special tokens although a rendered template may bring its own bos (trl#3520, trl#3853).
        bos, is_text = self.processing_class.bos_token, isinstance(prompts[0], str)
        is_ours = (
            bool(bos) and any(prompt.startswith(bos) for prompt in prompts)
            if is_text
            else any(prompt[-1]["role"] == "assistant" for prompt in prompts)
        )
        if not is_ours:
            return super()._tokenize_prompts(prompts)
        template = {} if is_text else {"chat_template": self.chat_template, **self.chat_template_kwargs}
        return prompts_ids(self.processing_class, prompts, **template), None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """TRL's, after the engine knows seeds and step, which weights are transferred for; or what was generated ahead."""
        self._seconds_ahead = 0.0
        if self._engine is not None:
            seeds = self.next_row_seeds(len(prompt_ids))
            self._collect_next()
            if (drawn := self._taken_next()) is not None:
                self.weights_step, self._seconds_ahead = drawn.weights_step, drawn.seconds
                self._add_metrics({"server/faults": float(drawn.num_faults)})
                return drawn.completion_ids, drawn.logprobs
            self._prepare(self._engine, seeds)
        is_due = self._engine is not None and self.state.global_step != self._last_loaded_step
        generated = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        if self._engine is not None:
            self.weights_step = self._engine.weights_step
            if self.rollout_temperature is None:
                self._add_metrics({"server/faults": float(self._engine.num_faults)})
                if is_due:
                    self._add_metrics({"seconds/sync": self._engine.seconds_to_sync})
                if self.model.training:
                    self._next = None  # it was lost, and these are its rows
        return generated

    def _prepare(self, engine: Engine, seeds: Sequence[int]) -> None:
        engine.prepare(
            seeds=seeds,
            eos_token_ids=self.eos_token_ids,
            stop=self.stop_strings.texts if self.stop_strings else (),
            temperature=self.args.temperature if self.rollout_temperature is None else self.rollout_temperature,
            step=self.state.global_step,
        )

    def _request_next(self, server: ServerEngine, *, num_rows: int) -> None:
        """Have the server begin the next batch by the weights as they are now. num_rows: of each process."""
        if self.curriculum_settings.by is not None:
            problems = self._next_of_curriculum(num_rows)
        else:
            problems = self._sampler.batch(self._step // (self.args.steps_per_generation * self.num_iterations) + 1)
        self._next = NextBatch(problems, self.num_generated_batches)
        prompt_ids, _, _ = self._tokenize_prompts([row["prompt"] for row in self._rows_of(problems, num_rows)])
        self._prepare(server, self._row_seeds(self._next.number, num_rows))
        if self.state.global_step != self._last_loaded_step:
            server.sync_weights()
            self._last_loaded_step = self.state.global_step
            self._add_metrics({"seconds/sync": server.seconds_to_sync})
        server.request(prompt_ids)

    def _collect_next(self) -> None:
        """Wait for what the server was asked for ahead: until it is there, nothing else is generated, and no weights are sent."""
        if self._server is None or not self._server.is_in_flight:
            return
        assert self._next is not None
        ids, logprobs = self._server.collect()
        server = self._server
        self._next.drawn = Drawn(ids, logprobs, server.weights_step, server.seconds_to_generate, server.num_faults)

    def _taken_next(self) -> Drawn | None:
        """Completions, generated ahead, of the training batch under way; None if it has to be generated now."""
        if self._next is None or self._next.drawn is None or not self.model.training:
            return None
        if self.rollout_temperature is not None:
            return None
        assert self._next.number == self.batch_number
        drawn, self._next = self._next.drawn, None
        return drawn

    def _next_of_curriculum(self, num_rows: int) -> list[int]:
        """The problems that the curriculum chooses for the next batch. num_rows: of each process."""
        num = num_rows * self.accelerator.num_processes // self.num_generations
        return self.problems.next(num, num_batches=self.num_generated_batches)

    def next_row_seeds(self, num_rows: int) -> list[int]:
        """A seed for each of this process's rows of the batch being generated, by its place among the rows of all processes.

        Every evaluation draws alike.
        """
        seeds = self._row_seeds(self.batch_number, num_rows)
        if self.rollout_temperature is None:
            self.batch_seeds = seeds
        return seeds

    def _row_seeds(self, number: int, num_rows: int) -> list[int]:
        first = self.accelerator.process_index * num_rows
        return row_seeds((self.args.seed, self._mode, number), first=first, num_rows=num_rows)

    def is_truncated(self, ids: Sequence[int]) -> bool:
        """True where a completion ran into the token limit: it ends neither with an end token nor with a stop string."""
        return is_truncated(ids, ends=self._ends, stop=self.stop_strings)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """Rewards of all processes, [N, F], from the verdict on each completion; NaN where one is out of range.

        Ends a run that cannot learn from them.
        """
        with self.clock.phase("scoring"):
            # The verdict on a response that ran into the token limit is another; rewards have to know what is recorded.
            given = [
                {**row, "is_truncated": self.is_truncated(ids)}
                for row, ids in zip(inputs, completion_ids_list, strict=True)
            ]
            if self.task is not None:
                rollouts = self._verified(inputs)
                given = [{**row, "verdict": one.verdict} for row, one in zip(given, rollouts, strict=True)]
                self._rollouts = rollouts if self.rollout_temperature is None else self._rollouts
            with self.clock.phase("rewards"):
                rewards_NF: torch.Tensor = super()._calculate_rewards(given, prompts, completions, completion_ids_list)
        is_wrong_NF = out_of_range(rewards_NF)
        if is_wrong_NF.any():
            rewards_NF = rewards_NF.masked_fill(is_wrong_NF, torch.nan)
            self._add_metrics({"rewards/out_of_range": is_wrong_NF.float().mean().item()})
        if self.rollout_temperature is None:
            self.rewards_NF = rewards_NF
            if self.model.training:
                self.reward_watch.see(weighted(rewards_NF, self.reward_weights), prompts, completions)
        return rewards_NF

    def _advantages(self, scored: Batch, baseline_P: torch.Tensor | None) -> torch.Tensor:
        """This process's advantages, [B] or [B, T], in the place of TRL's. baseline_P: this process's rewards of greedy responses (ReMax)."""
        if self.multi_objective_aggregation == "sum_then_normalize":
            rewards_N = weighted(self.rewards_NF, self.reward_weights)
            if self.soft_overlong_tokens:
                penalty_N = soft_overlong_penalty(
                    self.accelerator.gather(self._lengths()),
                    max_length=self.max_completion_length,
                    num_soft=self.soft_overlong_tokens,
                )
                self._add_metrics({"rewards/soft_overlong/mean": penalty_N.mean().item()})
                rewards_N = rewards_N + penalty_N
            advantages = self._estimated(scored, rewards_N, baseline_P)
            is_constant_N = constant_completions(rewards_N, num_generations=self._group_size)
        else:
            # Advantages are TRL's own. Where all groups are constant they are rounding, divided by its deviation.
            is_constant_N = constant_completions(self.rewards_NF, num_generations=self._group_size)
            advantages = torch.where(self._mine(is_constant_N), 0.0, scored["advantages"])
        # TRL's own test is isclose(std, 0), which rounding fools both ways, and of the batch's deviation where that scales.
        self._metrics[self._mode]["frac_reward_zero_std"][-1] = is_constant_N.float().mean().item()
        self._show_advantages(mean_per_row(advantages, scored["completion_mask"]))
        return advantages

    def _estimated(self, scored: Batch, rewards_N: torch.Tensor, baseline_P: torch.Tensor | None) -> torch.Tensor:
        algorithm, num_rows = ALGORITHMS[self.algorithm], len(scored["completion_ids"])
        if not self.model.training and algorithm.estimator != "grpo":
            return torch.zeros(num_rows, device=rewards_N.device)  # only the loss of an evaluation reads them
        known: dict[str, Any] = {"scale": self.scale_rewards}
        if baseline_P is not None:
            known["greedy_P"] = self.accelerator.gather(baseline_P)
        if "lengths_PG" in algorithm.reads:
            known["lengths_PG"] = self.accelerator.gather(self._lengths()).view(-1, self.num_generations)
        if self.critic is not None:
            known |= self.critic.inputs(scored)
        estimate = estimated(
            algorithm,
            rewards_N,
            mask_BT=loss_mask(scored),
            kl_BT=self._kl_penalty(scored) if self.kl_in_reward and self.model.training else None,
            num_generations=self._group_size,
            accelerator=self.accelerator,
            **known,
        )
        if self.critic is not None:
            num_prompts = len(rewards_N) // self.num_generations
            if self.critic.set_targets(scored, estimate, values_BT=known["values_BT"], num_prompts=num_prompts):
                return torch.zeros_like(estimate.values)  # its warm start
        if (self.advantage_whitening or algorithm.whitening) == "none":
            return torch.where(estimate.learns, estimate.values, 0.0)
        return whitened(estimate, accelerator=self.accelerator)

    def _kl_penalty(self, scored: Batch) -> torch.Tensor:
        """beta log(pi_old / pi_ref) of each token, 0 outside the loss mask and where `kl_tokens` takes none; [B, T]."""
        mask_BT, old_BT = loss_mask(scored), scored.get("sampling_per_token_logps")
        old_BT = self.policy_logps(scored) if old_BT is None else old_BT
        # A sampler that does not know a token's log-probability says NaN.
        taken_BT = mask_BT if self._takes_kl_V is None else mask_BT & self._takes_kl_V[scored["completion_ids"]]
        kl_BT = torch.where(taken_BT, old_BT - self.reference_logps(scored), 0.0).nan_to_num(nan=0.0)
        totals = self.accelerator.reduce(torch.stack([kl_BT.sum(), mask_BT.sum().float()]), reduction="sum")
        self._add_metrics({"kl": (totals[0] / totals[1].clamp(min=1.0)).item()})
        return self.kl_in_reward * kl_BT

    def _needs_greedy_baseline(self) -> bool:
        return self.model.training and "greedy_P" in ALGORITHMS[self.algorithm].reads

    def _greedy_rewards(self, inputs: Rows) -> torch.Tensor:
        """The reward of the greedy response to each of this process's prompts (ReMax); NaN where it has none.

        Its tokens are counted, its lengths and rewards are in no metric but `reward_greedy`. It pays no overlong penalty: any
        number that does not depend on the completion is a baseline.
        """
        rows = inputs[:: self.num_generations]
        prompts = [row["prompt"] for row in rows]
        with self._extra_rollout(temperature=0.0):
            _, completion_ids, _, completions, *_ = self._generate(prompts)
            rewards_NF = self._calculate_rewards(rows, prompts, completions, completion_ids)
        rewards_N = weighted(rewards_NF, self.reward_weights)
        self._add_metrics({"reward_greedy": torch.nanmean(rewards_N).item()})
        first = self.accelerator.process_index * len(rows)
        return rewards_N[first : first + len(rows)]

    def _with_fresh_prompts(self, scored: Batch, inputs: Rows, roll_out: Callable[[Rows], Batch]) -> Batch:
        """The batch with groups of fresh problems in the place of those without signal.

        Metrics are those of the first round, which is a fair sample of the problems; what the rounds add is in sampling/*, in the token
        counts and in the rollouts' shards, a part for each round.
        """
        with recording.left_out(self._metrics["train"]):
            found = filled(
                scored,
                problems=gather_object([row[ROW_INDEX] for row in inputs]),
                max_rounds=self.dynamic_sampling_rounds,
                num_generations=self.num_generations,
                pad_token_id=self._tokenizer.pad_token_id,
                fresh_problems=lambda num, seen: self.problems.fresh(
                    num, exclude=seen, num_batches=self.num_generated_batches
                ),
                roll_out=lambda problems, num_rows: roll_out(self._rows_of(problems, num_rows)),
                over_processes=self._over_processes,
                num_processes=self.accelerator.num_processes,
            )
        self._add_metrics(
            {
                "sampling/rounds": found.num_rounds,
                "sampling/groups_generated": found.num_generated * self.accelerator.num_processes,
                "sampling/groups_replaced": int(self._over_processes(found.num_replaced).sum()),
            }
        )
        return found.batch

    def _with_replayed(self, scored: Batch) -> Batch:
        """The batch with solved groups of earlier steps in the place of those without signal."""
        if "sampling_per_token_logps" not in scored:
            raise ConfigError(
                "replay.num_groups needs the log-probabilities completions were sampled with, which this generation does not give"
            )
        scored, num_replayed = self.replay.exchange(
            scored, step=self.state.global_step, pad_token_id=self._tokenizer.pad_token_id
        )
        self._add_metrics({"replay/groups": int(self._over_processes(num_replayed).sum())})
        return scored

    def _verified(self, rows: Rows) -> list[Rollout]:
        """A rollout of each of this process's rows, of what was generated last."""
        assert self.task is not None
        return recording.rollouts_of(
            rows,
            self._generated,
            task=self.task,
            seeds=self.batch_seeds if self.rollout_temperature is None else None,
            is_truncated=self.is_truncated,
            step=self.state.global_step + self.model.training,
            generation=self.batch_number,
            weights_step=self.weights_step,
        )

    def _record(self, scored: Batch) -> torch.Tensor:
        """Complete this process's rollouts, gather all of them, log their metrics and write their shard; returns which are correct, [B]."""
        assert self.task is not None
        num_rows = len(self._rollouts)
        first = self.accelerator.process_index * num_rows
        before = self._eval_rollouts[-1].problem + 1 if not self.model.training and self._eval_rollouts else 0
        mine = recording.scored(
            self._rollouts,
            self.rewards_NF[first : first + num_rows].tolist(),
            weights=self.reward_weights.tolist(),
            names=self.reward_func_names,
            advantages=mean_per_row(scored["advantages"], scored["completion_mask"]).tolist(),
            problems=[before + row // self._group_size for row in range(first, first + num_rows)],
        )
        rollouts: list[Rollout] = gather_object(mine)
        self._add_metrics(recording.measured(rollouts, task=self.task, seconds=self._generated.seconds))
        if self.model.training:
            self.problems.learn_success(
                [rollout.is_correct for rollout in rollouts],
                problems=[rollout.row_index or 0 for rollout in rollouts],
                num_generations=self.num_generations,
            )
            if self.is_world_process_zero():
                self.shards.write("train", self.state.global_step + 1, rollouts)
        else:
            self._eval_rollouts += rollouts
        return torch.tensor([rollout.is_correct for rollout in mine], device=self.accelerator.device)

    # The update: loss -> guard -> step

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss of a micro-step, chunk by chunk: the last chunk's, the backward passes of those before it are done."""
        trl_loss = partial(super().compute_loss, model)
        if not self.model.training:
            return trl_loss(inputs, return_outputs, num_items_in_batch)
        step = self._optimizer_step
        if "chunks" in inputs:
            step.has_signal |= inputs["has_signal"]
            loss = torch.zeros((), device=self.accelerator.device, requires_grad=True)
            for index, chunk in enumerate(inputs["chunks"]):
                is_last = index == len(inputs["chunks"]) - 1
                with nullcontext() if is_last else self._no_sync(model):
                    with self._chunk_metrics_apart(chunk["num_tokens"]):
                        loss = self._guarded(chunk, trl_loss(chunk, num_items_in_batch=num_items_in_batch))
                    loss = loss * chunk["scale"]
                    if not is_last:
                        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self._is_deepspeed else {}))
                        earlier = 0.0 if step.earlier_loss is None else step.earlier_loss
                        step.earlier_loss = earlier + loss.detach()
        else:
            step.has_signal |= self._finds_signal(inputs)
            loss = self._guarded(inputs, trl_loss(inputs, return_outputs, num_items_in_batch))
        if self.accelerator.sync_gradients:
            self._add_metrics({"steps_without_signal": float(not step.has_signal)})
            self._add_metrics(microbatches.over_chunks(step.chunk_metrics))
            step.chunk_metrics = []
            if self._is_deepspeed and not step.has_signal:
                # DeepSpeed steps inside backward, unless it is told that more is to come. What came is 0.
                self.accelerator.gradient_state._set_sync_gradients(False)
        return loss

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        self._in_loss, reference_BT = inputs, inputs.get("ref_per_token_logps")
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._in_loss = None
            if reference_BT is not None:
                inputs["ref_per_token_logps"] = reference_BT

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **options: Any
    ) -> Any:
        """TRL's pass, without padding or repeated prompts where settings say so; the old log-probabilities are read off the loss's own.

        While a batch is scored it is put off.
        """
        if self._is_deferring_logps:
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        if self.batching.packing and not self._is_vlm:
            model = logprobs.Packed(model)
        if self.batching.share_prompts:
            model = SharedPrompts(model, num_prompt=input_ids.size(1) - logits_to_keep)
        computed = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, **options
        )
        if self._in_loss is not None:  # TRL's loss reads the old log-probabilities after this call
            self._complete_in_loss(self._in_loss, computed[0].detach())
        return computed

    def _complete_in_loss(self, batch: Batch, now_BT: torch.Tensor) -> None:
        """Give TRL's loss what it reads besides the log-probabilities of now."""
        if self._takes_kl_V is not None and "ref_per_token_logps" in batch:
            # Where the two are equal, k3 and its gradient are 0.
            takes_kl_BT = self._takes_kl_V[batch["completion_ids"]]
            batch["ref_per_token_logps"] = torch.where(takes_kl_BT, batch["ref_per_token_logps"], now_BT)
        if "is_old_known" in batch:
            corrects = self.use_vllm and self.vllm_importance_sampling_correction
            ratio = {
                "mode": self.vllm_importance_sampling_mode,
                "low": self.vllm_importance_sampling_clip_min,
                "high": self.vllm_importance_sampling_clip_max,
            }
            is_reused = self.num_iterations > 1
            gap_BT = logprobs.fold(batch, now_BT, is_reused=is_reused, ratio=ratio if corrects else None)
            if gap_BT is not None:
                if self._server is not None:  # the old policy is the sampler, so it says nothing about the trainer's
                    gap_BT = (now_BT - batch["sampling_per_token_logps"]).abs()
                self._add_metrics(logprobs.sampling_metrics(batch, gap_BT, gather=self.accelerator.gather))
        if "is_replayed" in batch:
            fill_in_old(batch, now_BT)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm; without gradients, so that the optimizer passes over every parameter, where the step must not be taken.

        A step in which no row of any process has a gradient is not taken either: weights, momentum and decay stay, the learning rate's
        schedule goes on.
        """
        grad_norm, step = super()._get_grad_norm(model, grad_norm=grad_norm), self._optimizer_step
        # fp16's loss scaler skips non-finite steps itself, as part of its search for a scale. DeepSpeed's norm is that of its
        # last step, and says nothing of this one where there was no step to take.
        has_scaler = self.accelerator.scaler is not None
        is_due = not self._is_deepspeed or model.is_gradient_accumulation_boundary()
        if grad_norm is not None and not has_scaler and is_due:
            run, number = Path(self.args.output_dir), self.state.global_step + 1
            is_finite = self.non_finite.judge(
                float(grad_norm),
                step.losses,
                model=model,
                run=run,
                step=number,
                accelerator=self.accelerator,
                tokenizer=self.processing_class,
            )
            self._add_metrics({"skipped_steps": float(not is_finite)})
            if not is_finite:
                model.zero_grad()
            self.non_finite.check(step=number, run=run)
        step.losses = []
        # fp16's loss scaler cannot pass over a step without gradients: it takes the step, with gradients of 0.
        if not step.has_signal and not self._is_deepspeed and not has_scaler:
            model.zero_grad(set_to_none=True)
        return grad_norm if step.has_signal else 0.0

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.offload:
            keep_state_on_host(optimizer)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """TRL's; with a budget of tokens, `linear` falls to 0 with the tokens left, not with the steps left."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        budget = self._budget
        if budget is not None and self.args.lr_scheduler_type == SchedulerType.LINEAR:
            scheduler.lr_lambdas = [lambda step: budget.share_left()] * len(scheduler.lr_lambdas)
        return scheduler

    # Log and evaluate

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not self.model.training and self._eval_rollouts:
            logs |= recording.held_out_metrics(self._eval_rollouts, self._greedy_rollouts)
        if self.non_finite.hides_loss and "loss" in logs:
            logs["loss"] = math.nan
            self.non_finite.hides_loss = False
        if self._metrics["train"].get("reward"):
            logs["generated_tokens"] = float(self.num_generated_tokens)
        super().log(logs, start_time)
        if self.task is not None and self.is_world_process_zero():
            seconds = round(time.monotonic() - self._began, 3)
            entry = {"step": self.state.global_step, "seconds": seconds, **logs}
            recording.append_metrics(Path(self.args.output_dir), entry)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's, at a temperature of its own, with a shard of its rollouts; every evaluation draws alike."""
        standing = self.args.temperature
        self._num_eval_batches, self._greedy_rollouts = 0, []
        if self.evaluation.temperature is not None:
            self.args.temperature = self.evaluation.temperature
        self.clock.seconds.clear()
        try:
            with self._awake():
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        finally:
            self.args.temperature = standing
        self.clock.seconds.clear()
        if self._eval_rollouts and self.is_world_process_zero():
            self.shards.write("eval", self.state.global_step, self._eval_rollouts)
        self._eval_rollouts = []
        return metrics

    def _answered_greedily(self, rows: Rows) -> list[Rollout]:
        """One greedy response to each row, verified, over all processes."""
        with self._extra_rollout(temperature=0.0):
            self._generate([row["prompt"] for row in rows])
            rollouts = gather_object(self._verified(rows))
        first = len(self._greedy_rollouts)
        return [replace(rollout, problem=first + index) for index, rollout in enumerate(rollouts)]

    # Save and resume

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """TRL's, with what a resumed run needs besides, sealed; then older ones go."""
        step, run = self.state.global_step, Path(self._get_output_dir(trial=trial))
        folder = run / f"checkpoint-{step}"
        lost: ServerLost | DiskFull | None = None
        try:
            self._collect_next()
        except (ServerLost, DiskFull) as failure:
            lost = failure
        checkpoints.refuse_non_finite(self.model, step=step, accelerator=self.accelerator)
        # TRL rotates before the seal, unsealed ones too.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self._sealed(folder) as beside:
                self._being_written = beside.parent
                super()._save_checkpoint(model, trial)
                state.save_state(beside, self.resume_state(), rank=self.accelerator.process_index)
                if self.args.sync_ref_model:
                    reference = self.accelerator.get_state_dict(self.ref_model)
                    if self.args.should_save:
                        state.save_reference(beside, reference)
                if self.state.best_model_checkpoint == str(beside):
                    # transformers has named the folder being written as the best (`metric_for_best_model`).
                    self.state.best_model_checkpoint = str(folder)
                    if self.args.should_save:
                        self.state.save_to_json(str(beside / TRAINER_STATE_NAME))
        finally:
            self.args.save_total_limit, self._being_written = limit, None
        if self.args.should_save and limit is not None:
            best, history = self.state.best_model_checkpoint, self.state.log_history
            checkpoints.rotate(run, keep=limit, best=best, history=history)
        if lost is not None:
            raise type(lost)(f"{lost}; checkpoint-{step} is saved") from lost

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With a limit of 1, transformers deletes here all but the best, the seal not first.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._being_written or super()._get_output_dir(trial))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle that nothing here reads, and that holds tokens (hub_token) when they are set.
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)

    def save_final(self, folder: Path) -> None:
        """Write the model and tokenizer to `folder`, sealed."""
        checkpoints.refuse_non_finite(self.model, step=self.state.global_step, accelerator=self.accelerator)
        with self._sealed(folder) as beside:
            self.save_model(str(beside))

    def resume_state(self) -> dict[str, Any]:
        """This process's state as nested dicts and lists of tensors, numbers, text and None.

        Rollouts in use are saved only inside a generation cycle; at the end of one the next step makes new ones.
        """
        loss = {
            "loss": float(self._tr_loss),
            "total": float(self._total_loss_scalar),
            "logged_at": self._globalstep_last_logged,
        } if self.state.global_step else None  # fmt: skip
        saved = {
            "step": self._step,
            "rollouts": None if self._is_between_cycles() else self._buffered_inputs,
            "metrics": {mode: dict(values) for mode, values in self._metrics.items()},
            "total_train_tokens": self._total_train_tokens,
            "step_time": self._current_train_step_time,
            "loss_so_far": loss,
            "num_generated_batches": self.num_generated_batches,
            "num_generated_tokens": self.num_generated_tokens,
            "guards": {**self.reward_watch.state(), **self.non_finite.state()},
        }
        if self.critic is not None:
            saved["critic"] = self.critic.state(is_between_cycles=self._is_between_cycles())
        if self.curriculum_settings.by is not None:
            saved["curriculum"] = self.problems.state()
        if self._next is not None:
            saved["next_batch"] = self._next.state()
        return {**saved, "replay": self.replay.state()}

    def load_resume_state(self, saved: dict[str, Any]) -> None:
        """Take back what `resume_state` gave."""
        self._step = saved["step"]
        self._buffered_inputs = saved["rollouts"]
        self._metrics = {mode: defaultdict(list, values) for mode, values in saved["metrics"].items()}
        self._total_train_tokens = saved["total_train_tokens"]
        self._current_train_step_time = saved["step_time"]
        self._restored_loss = saved["loss_so_far"]
        self.num_generated_batches = int(saved["num_generated_batches"])
        self.num_generated_tokens = int(saved["num_generated_tokens"])
        self.reward_watch.load(saved.get("guards", {}))
        self.non_finite.load(saved.get("guards", {}))
        if self.critic is not None:
            self.critic.load(saved["critic"])
        if self.curriculum_settings.by is not None:
            self.problems.load(saved["curriculum"])
        self.replay.load(saved["replay"])
        self._next = NextBatch.of_state(saved["next_batch"]) if "next_batch" in saved else None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """TRL's, and the state that is saved beside it. Raises: ConfigError for a checkpoint that the run cannot go on from as it was."""
        rank, is_alone = self.accelerator.process_index, self.accelerator.num_processes == 1
        if checkpoint is not None:
            # DeepSpeed and FSDP have files of their own, and do complain.
            is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
            names = [] if is_sharded else ["optimizer.pt", "scheduler.pt"]
            state.check_files(Path(checkpoint), [*names, "rng_state.pth" if is_alone else f"rng_state_{rank}.pth"])
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        saved = state.load_state(Path(checkpoint), rank=rank, device=self.accelerator.device)
        if saved is not None:
            self.load_resume_state(saved)
        else:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
            if not self._is_between_cycles():
                raise ConfigError(
                    f"{checkpoint} lies inside a generation cycle and has no {state.STATE}: its rollouts are lost"
                )
            logger.warning("%s has no %s: metrics and counters begin anew", checkpoint, state.STATE)
        if self.args.sync_ref_model:
            state.load_reference(Path(checkpoint), self.accelerator.unwrap_model(self.ref_model))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result)
        state.check_weights(self.model, missing=load_result.missing_keys, unexpected=load_result.unexpected_keys)

    # Log-probabilities and chunks

    def policy_logps(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities of the completions' tokens under the policy as it is now; [B, T], 0 at padding. Every process must call it."""
        return self._logps_in_chunks(batch, self._policy_logps_of)

    def reference_logps(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities under the reference model, or under the policy without its adapter; as `policy_logps`."""
        return self._logps_in_chunks(batch, self._reference_logps_of)

    def _logps_in_chunks(self, batch: Batch, logps_of: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        rows = torch.arange(len(batch["completion_ids"]), device=batch["completion_ids"].device)
        return logprobs.in_chunks(batch, self._cut(rows, batch), logps_of)

    def _policy_logps_of(self, chunk: Batch) -> torch.Tensor:
        return self._logps_of(self.model, chunk)

    def _reference_logps_of(self, chunk: Batch) -> torch.Tensor:
        if self.ref_model is not None:
            return self._logps_of(self.ref_model, chunk)
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._logps_of(self.model, chunk)

    @torch.no_grad()
    def _logps_of(self, model: Any, chunk: Batch) -> torch.Tensor:
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logps_BT, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([chunk["prompt_ids"], chunk["completion_ids"]], dim=1),
                torch.cat([chunk["prompt_mask"], chunk["completion_mask"]], dim=1),
                chunk["completion_ids"].size(1),
            )
        return logps_BT

    def _cut(self, rows: torch.Tensor, batch: Batch) -> Cut:
        shares_prompts = self.batching.share_prompts
        return microbatches.cut(
            rows,
            lengths(batch),
            prompt_B=prompt_numbers(batch["prompt_ids"], batch["prompt_mask"]) if shares_prompts else None,
            settings=self.batching,
            rows_at_once=self.args.per_device_train_batch_size,
            accelerator=self.accelerator,
        )

    def _complete_chunk(self, chunk: Batch, is_on_policy: bool) -> None:
        """Add the log-probabilities that the chunk's loss needs and its own pass cannot give."""
        if self.beta != 0.0:
            chunk["ref_per_token_logps"] = self._reference_logps_of(chunk)
        if self._server is not None:
            chunk["is_old_known"] = True
            return
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        is_reused = self.num_iterations > 1
        if not is_on_policy or (not self.batching.fold_old_logprobs and (corrects or is_reused)):
            logprobs.keep_old(chunk, self._policy_logps_of(chunk))

    @contextmanager
    def _deferred_logps(self) -> Iterator[None]:
        """Have TRL score a batch without passes for old and reference log-probabilities: which are needed is known once rows are dealt."""
        corrects, self._is_deferring_logps = self.vllm_importance_sampling_correction, True
        self.vllm_importance_sampling_correction = False
        try:
            yield
        finally:
            self.vllm_importance_sampling_correction, self._is_deferring_logps = corrects, False

    def _guarded(self, batch: Batch, loss: torch.Tensor) -> torch.Tensor:
        self._optimizer_step.losses.append((batch, loss.detach()))
        return nan_where_not_finite(loss)

    @contextmanager
    def _chunk_metrics_apart(self, num_tokens: int) -> Iterator[None]:
        """Keep what TRL's loss logs in the block for `over_chunks`."""
        whole, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            yield
            self._optimizer_step.chunk_metrics.append((num_tokens, self._metrics["train"]))
        finally:
            self._metrics["train"] = whole

    @contextmanager
    def _no_sync(self, model: Any) -> Iterator[None]:
        """Keep the gradients of the block on this process until a later backward pass."""
        synchronises = self.accelerator.sync_gradients
        self.accelerator.gradient_state._set_sync_gradients(False)
        try:
            with nullcontext() if self._is_deepspeed else self.accelerator.no_sync(model):
                yield
        finally:
            self.accelerator.gradient_state._set_sync_gradients(synchronises)

    # What the settings allow

    def _may_deal(self) -> bool:
        """True where rows may be dealt into chunks of ours; where the loss has terms over a whole micro-batch, TRL's slices stay."""
        settings = self.batching
        return (
            (
                settings.skip_constant_groups
                or settings.sort_by_length
                or settings.fold_old_logprobs
                or settings.packing
                or settings.share_prompts
                or settings.max_tokens_per_microbatch is not None
            )
            and not self._is_vlm
            and self.loss_type in (*MEAN_OVER_ROWS, *SUM_OVER_TOKENS)
            and self.top_entropy_quantile == 1.0
            and not self._entropy_bonus_enabled
            and not self.aux_loss_enabled
            and not self.is_fsdp_enabled
            and self.args.optim not in (OptimizerNames.LOMO, OptimizerNames.ADALOMO)  # they step inside backward
            and getattr(self.accelerator, "parallelism_config", None) is None
        )

    def _may_drop(self) -> bool:
        # The KL term of the loss has a gradient whatever the advantage.
        return self.batching.skip_constant_groups and self.beta == 0.0

    def _finds_signal(self, inputs: Batch) -> bool:
        """True where a micro-batch that stays as TRL cut it may have a gradient on any process."""
        if not self._may_drop() or self._entropy_bonus_enabled or self.aux_loss_enabled:
            return True
        has_signal = inputs["advantages"].ne(0).any().float()
        return bool(self.accelerator.reduce(has_signal, reduction="sum"))

    @property
    def _is_deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def _is_between_cycles(self) -> bool:
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    # Small things

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _group_size(self) -> int:
        return (self.num_generations if self.model.training else self.num_generations_eval) or 1

    @property
    def _ends(self) -> tuple[int, ...]:
        return (*self.eos_token_ids, self._tokenizer.pad_token_id)

    def _lengths(self) -> torch.Tensor:
        """Tokens of this process's completions, [B]; the mask of a truncated one may be empty (mask_truncated_completions)."""
        return torch.tensor([len(ids) for ids in self._generated.completion_ids], device=self.accelerator.device)

    def _mine(self, values_N: torch.Tensor) -> torch.Tensor:
        """This process's share of one value a completion."""
        size = len(values_N) // self.accelerator.num_processes
        return values_N[self.accelerator.process_index * size :][:size]

    def _rows_of(self, problems: Sequence[int], num_rows: int) -> Rows:
        """This process's `num_rows` rows of these problems, which all processes share."""
        first = self.accelerator.process_index * num_rows
        return self.problems.rows(problems, num_generations=self.num_generations, first=first, num_rows=num_rows)

    def _over_processes(self, number: int | torch.Tensor) -> torch.Tensor:
        """A number of this process, beside those of the others."""
        gathered: torch.Tensor = self.accelerator.gather(torch.as_tensor(number, device=self.accelerator.device)[None])
        return gathered

    def _batch_rewards(self) -> list[BatchReward]:
        return [reward for reward in self.reward_funcs if isinstance(reward, BatchReward)]

    def _add_metrics(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._metrics[self._mode][name].append(value)

    def _show_advantages(self, advantages_B: torch.Tensor) -> None:
        """Put the advantages that are trained on into TRL's table of completions."""
        shown, logged = self.accelerator.gather(advantages_B).tolist(), self._logs["advantages"]
        for offset in range(1, min(len(shown), len(logged)) + 1):
            logged[-offset] = shown[-offset]

    def _awake(self) -> AbstractContextManager[None]:
        """A block in which vLLM keeps its weights from one rollout to the next."""
        return self._engine.awake() if self._engine is not None else nullcontext()

    @contextmanager
    def _extra_rollout(self, *, temperature: float) -> Iterator[None]:
        """Generate and score in the block at `temperature`, unrecorded: tokens count, metrics leave no trace."""
        pending, self._pending_metrics = self._pending_metrics, defaultdict(list)
        extra, self._pending_extra_logs = self._pending_extra_logs, defaultdict(list)
        self.rollout_temperature = temperature
        try:
            with recording.left_out(self._metrics[self._mode]):
                yield
        finally:
            self.rollout_temperature = None
            self._pending_metrics, self._pending_extra_logs = pending, extra

    def _sealed(self, folder: Path) -> AbstractContextManager[Path]:
        return checkpoints.sealed(
            folder,
            run=Path(self.args.output_dir),
            step=self.state.global_step,
            writes=self.args.should_save,
            accelerator=self.accelerator,
        )


class _RestoreLoss(TrainerCallback):
    """Puts the loss since the last log back, which transformers sets to 0 as training begins."""

    def __init__(self, trainer: TinyZeroTrainer):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (saved := self.trainer._restored_loss) is not None:
            self.trainer._tr_loss += saved["loss"]
            self.trainer._total_loss_scalar = saved["total"]
            self.trainer._globalstep_last_logged = int(saved["logged_at"])
            self.trainer._restored_loss = None
