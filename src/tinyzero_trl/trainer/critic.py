"""PPO's critic: a value model that gives every token its value, and learns beside the policy.

It is a replica on every process, with an optimizer of its own. Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from transformers import AutoModel
from trl.trainer.utils import disable_dropout_in_model

from tinyzero_trl.algorithms.ppo import value_loss
from tinyzero_trl.config import CriticSettings
from tinyzero_trl.failures import NumericFailure
from tinyzero_trl.trainer.advantages import Estimated
from tinyzero_trl.trainer.batches import Batch, lengths, take, trim
from tinyzero_trl.trainer.microbatches import chunk_sizes

COLUMNS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "values", "returns")
"""Columns of a batch that learning reads. `returns` is NaN where a token has no target: padding, tools, rows without a reward."""


class Critic:
    """The value model of a run, the rows it has still to learn from, and its warm start.

    It has a pass of its own over every row of an optimizer step, cut by its own lengths: it learns also from rows that give the
    policy no gradient, and during the warm start none does. With num_iterations above 1 it learns in each, towards
    the returns of rollout time. During the first `warm_start_prompts` prompts the policy's advantages are exactly 0. Its
    learning rate is constant. Truncated completions: see algorithms/ppo.py.
    """

    def __init__(self, learner: ValueLearner, settings: CriticSettings):
        self.learner = learner
        self.settings = settings
        self.num_prompts = 0
        """Prompts of all batches so far."""
        self.slices: list[Batch] = []
        """The rows of each micro-step of the generation cycle under way."""
        self._window: list[Batch] = []
        """The rows of this optimizer step."""

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Inputs of PPO's estimator besides rewards: the value of every completion token, and the discounts."""
        return {"values_BT": self.learner.values(batch), "gamma": self.settings.gamma, "lam": self.settings.lam}

    def set_targets(self, batch: Batch, estimate: Estimated, *, values_BT: torch.Tensor, num_prompts: int) -> bool:
        """Add the columns `values` and `returns` to the batch; returns True during the warm start."""
        batch["values"] = values_BT
        batch["returns"] = torch.where(estimate.learns, estimate.values + values_BT, torch.nan)
        is_warming_up = self.num_prompts < self.settings.warm_start_prompts
        self.num_prompts += num_prompts
        return is_warming_up

    def begin_cycle(self, slices: list[Batch]) -> None:
        """Keep the rows of new rollouts, a batch for each micro-step."""
        self.slices = [{key: part[key] for key in COLUMNS} for part in slices]

    def see(self, micro_step: int) -> None:
        """Learn from the rows of this micro-step of the cycle with the next `learn`."""
        self._window.append(self.slices[micro_step])

    def learn(self) -> dict[str, float]:
        """Learn from the rows of the optimizer step; returns metrics."""
        metrics = self.learner.learn(self._window, num_minibatches=self.settings.num_minibatches)
        self._window = []
        return metrics

    def state(self, *, is_between_cycles: bool) -> dict[str, Any]:
        """Weights, optimizer, counter, and the rows, which are needed again only inside a generation cycle."""
        rows = [] if is_between_cycles else self.slices
        return {**self.learner.state(), "num_prompts": self.num_prompts, "rows": rows}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.learner.load(state)
        self.num_prompts = state["num_prompts"]
        self.slices = state["rows"]


def make_critic(settings: CriticSettings, *, policy: Any, args: Any, tokens_at_once: int | None, device: Any) -> Critic:
    """A critic that starts from `settings.model`, or from the policy's own weights. args: TRL's GRPOConfig."""
    given = dict(args.model_init_kwargs or {})
    wanted = {key: given[key] for key in ("revision", "attn_implementation", "trust_remote_code") if key in given}
    if settings.model:
        wanted.pop("revision", None)
    source = settings.model or policy.config._name_or_path
    backbone = AutoModel.from_pretrained(source, dtype=torch.float32, **wanted)
    if args.gradient_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    model = ValueModel(backbone).to(device)
    # Values at rollout time and while learning are of one function; checkpointing works in training mode only.
    disable_dropout_in_model(model)
    learner = ValueLearner(
        model.train(),
        learning_rate=settings.learning_rate,
        clip_range=settings.clip_range,
        max_grad_norm=args.max_grad_norm,
        rows_at_once=args.per_device_train_batch_size,
        tokens_at_once=tokens_at_once,
        autocast=torch.bfloat16 if args.bf16 else None,
    )
    return Critic(learner, settings)


class ValueModel(torch.nn.Module):
    """A transformer with one number a token on top, 0 everywhere before it has learned anything."""

    def __init__(self, backbone: Any):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Linear(backbone.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """The value of the state before each completion token, float32 [B, T]; any number at padding."""
        input_ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        attention_mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        num_completion = batch["completion_ids"].size(1)
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        before = hidden[:, -num_completion - 1 : -1]
        return torch.nn.functional.linear(before.float(), self.head.weight, self.head.bias).squeeze(-1)


class ValueLearner:
    """Values without gradient for rollouts, and optimizer steps on rows, the same on all processes.

    Weights are float32, as an optimizer step at 1e-5 is lost in bfloat16; passes compute in `autocast`.
    """

    def __init__(
        self,
        model: ValueModel,
        *,
        learning_rate: float,
        clip_range: float,
        max_grad_norm: float,
        rows_at_once: int,
        tokens_at_once: int | None = None,
        autocast: torch.dtype | None = None,
    ):
        """tokens_at_once: most tokens of one pass, padding included; None: those of `rows_at_once` rows as wide as
        the batch. max_grad_norm: 0 does not clip."""
        self.model = model
        self.clip_range = clip_range
        self.max_grad_norm = max_grad_norm
        self.rows_at_once = rows_at_once
        self.tokens_at_once = tokens_at_once
        self.autocast = autocast
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)

    @torch.no_grad()
    def values(self, batch: dict[str, Any]) -> torch.Tensor:
        """The value of every completion token of this process's rows, [B, T]; 0 on padding."""
        values_BT = torch.zeros(batch["completion_ids"].shape, device=batch["completion_ids"].device)
        for rows, chunk in self._chunks([batch]):
            num_tokens = chunk["completion_ids"].size(1)
            values_BT[rows, :num_tokens] = self._forward(chunk) * chunk["completion_mask"]
        return values_BT

    def learn(self, slices: list[dict[str, Any]], *, num_minibatches: int = 1) -> dict[str, float]:
        """Make `num_minibatches` optimizer steps, each on its share of the rows; returns metrics, means over the steps.

        Every process makes the same steps with the rows it has, also with none. TRL has shuffled them.
        """
        shares = [
            [{key: part[key][k::num_minibatches] for key in COLUMNS} for part in slices] for k in range(num_minibatches)
        ]
        steps = [metrics for share in shares if (metrics := self.step(share))]
        means = {name: sum(metrics[name] for metrics in steps) / len(steps) for name in (steps[0] if steps else ())}
        return means | {"explained_variance": explained_variance(slices)}

    def step(self, slices: list[dict[str, Any]]) -> dict[str, float]:
        """Make one optimizer step on the mean loss over all tokens of all processes that have a target; returns {} if none has.

        Raises: NumericFailure, with the weights as they were, where the gradient is not finite.
        """
        parameters = list(self.model.parameters())
        num_targets = torch.stack([(~part["returns"].isnan()).sum() for part in slices]).sum()
        num_tokens = int(_summed(num_targets))
        if not num_tokens:
            return {}
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)  # a process without targets takes part in the sums below
        tallies = torch.zeros(2, device=num_targets.device)
        for _, chunk in self._chunks(slices):
            is_target = ~chunk["returns"].isnan()
            old_values, returns = chunk["values"][is_target], chunk["returns"][is_target]
            values = self._forward(chunk)[is_target]
            losses = value_loss(values, old_values_BT=old_values, returns_BT=returns, clip_range=self.clip_range)
            torch.autograd.backward(losses.sum() / num_tokens)
            is_clipped = losses.detach() > (values.detach() - returns) ** 2 / 2
            tallies += torch.stack([losses.detach().sum(), is_clipped.sum()]) / num_tokens
        if _is_distributed():
            pending = [distributed.all_reduce(parameter.grad, async_op=True) for parameter in parameters]
            for work in pending:
                work.wait()
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or math.inf))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(norm):
            raise NumericFailure("the gradient of the critic is not finite; lower critic.learning_rate")
        loss, clip_fraction = _summed(tallies).tolist()
        return {"loss": loss, "clip_fraction": clip_fraction, "grad_norm": norm}

    def state(self) -> dict[str, Any]:
        """Weights and optimizer as nested dicts of tensors and numbers."""
        optimizer = {str(index): values for index, values in self.optimizer.state_dict()["state"].items()}
        return {"weights": dict(self.model.state_dict()), "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.model.load_state_dict(state["weights"])
        values = {int(index): value for index, value in state["optimizer"].items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": values})

    def _forward(self, chunk: dict[str, Any]) -> torch.Tensor:
        device = chunk["completion_ids"].device.type
        with torch.autocast(device, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            values_BT: torch.Tensor = self.model(chunk)
        return values_BT

    def _chunks(self, slices: list[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """Row numbers and rows of like length, padding trimmed, in chunks of at most `tokens_at_once`, or of one row.

        No process waits for another within an optimizer step, so each cuts its own rows as they come.
        """
        # An optimizer step may take slices of several generation batches, which are of several widths.
        for widths, alike in itertools.groupby(
            slices, key=lambda part: (part["prompt_ids"].size(1), part["completion_ids"].size(1))
        ):
            parts = [part for part in alike if len(part["prompt_ids"])]
            if not parts:
                continue
            tokens_at_once = self.tokens_at_once or self.rows_at_once * sum(widths)
            whole = {key: torch.cat([part[key] for part in parts]) for key in COLUMNS if key in parts[0]}
            sizes_B2 = lengths(whole)
            order = sizes_B2.sum(1).argsort(descending=True, stable=True)
            prompts, completions = sizes_B2[order].T.tolist()
            sizes = chunk_sizes(prompts, completions, budget=tokens_at_once)
            for rows in torch.split(order, sizes):
                yield rows, trim(take(whole, rows))


def explained_variance(slices: list[dict[str, Any]]) -> float:
    """1 - var(returns - values) / var(returns) over the targets of all processes; NaN where all returns are the same."""
    returns = torch.cat([part["returns"][~part["returns"].isnan()] for part in slices]).double()
    values = torch.cat([part["values"][~part["returns"].isnan()] for part in slices]).double()
    columns = torch.stack([torch.ones_like(returns), returns, returns**2, returns - values, (returns - values) ** 2])
    num, total, squares, error, error_squares = _summed(columns.sum(1)).tolist()
    variance = squares / num - (total / num) ** 2 if num else 0.0
    return 1.0 - (error_squares / num - (error / num) ** 2) / variance if variance > 0 else math.nan


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _summed(values: torch.Tensor) -> torch.Tensor:
    """The sum over all processes."""
    if _is_distributed():
        distributed.all_reduce(values)
    return values
