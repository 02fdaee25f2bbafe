"""Where the time of one step goes by operation, and what its matrix products alone would take (`Floor`)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from tinyzero_trl.generation.sampler import DEFAULT_BATCH_SIZE

PROFILED_STEP = 2
"""The first one warms up."""
NUM_SHOWN = 20
GEMM_SECONDS = 0.5
"""Seconds for which each product is repeated to measure its rate."""
TRAINED_AT_ONCE = 4096
"""Tokens of the product that measures the rate of training."""


class Floor:
    """Attached to a trainer, counts the tokens of its steps that cannot be left out, and says how long the matrix products of the weights take.

    Every token of a completion is decoded once, and every different prompt read once, with as many rows at once as the sampler takes. In
    training, forward and backward passes see each different prompt of the rows with signal once, and their completions. Attention, padding,
    sampling, the optimizer and Python cost nothing.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.decoded: list[int] = []
        """Tokens of each step, read or drawn."""
        self.trained: list[int] = []
        """Tokens of each step in training."""
        self._rows: tuple[list[list[int]], list[list[int]]] = ([], [])
        trainer._generate = self._noting(trainer._generate)
        trainer._generate_and_score_completions = self._counting(trainer._generate_and_score_completions)

    def _noting(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            generated = generate(*args, **kwargs)
            self._rows = (generated[0], generated[1])
            return generated

        return noted

    def _counting(self, score: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            scored = score(*args, **kwargs)
            rows = list(zip(*self._rows, scored["advantages"].tolist(), strict=True))
            self.decoded.append(_tokens(rows))
            self.trained.append(_tokens([row for row in rows if row[2]]))
            return scored

        return counted

    def seconds(self, first: int) -> dict[str, float]:
        """Seconds of a step on average, by phase, at the rates measured now. first: the first step that counts."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        num_parameters = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
        num_parameters += model.get_output_embeddings().weight.numel()
        shape = {"inner": model.config.hidden_size, "columns": model.config.intermediate_size}
        # Forward, and twice as much backward.
        work = {"generation": (2, DEFAULT_BATCH_SIZE, self.decoded), "training": (6, TRAINED_AT_ONCE, self.trained)}
        return {
            phase: flop * num_parameters * sum(tokens[first:]) / len(tokens[first:]) / gemm_rate(rows=rows, **shape)
            for phase, (flop, rows, tokens) in work.items()
        }


def _tokens(rows: list[tuple[list[int], list[int], float]]) -> int:
    """Tokens of the completions, and of each different prompt once. rows: prompt, completion, advantage."""
    return sum(len(ids) for _, ids, _ in rows) + sum(len(prompt) for prompt in {tuple(ids) for ids, _, _ in rows})


class Profiled(TrainerCallback):
    """Attached to a trainer, writes `page` after its second step: operations of generation and of training apart."""

    def __init__(self, trainer: Any, *, page: Path):
        self.page, self.trainer = page, trainer
        self.sections: list[str] = []
        self.training: Any = None
        self.floor = Floor(trainer)
        trainer._generate = self._profiled(trainer._generate)
        trainer._generate_and_score_completions = self._then_training(trainer._generate_and_score_completions)
        trainer.add_callback(self)

    def _is_now(self) -> bool:
        return bool(self.trainer.state.global_step == PROFILED_STEP - 1)

    def _profiled(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def profiled(*args: Any, **kwargs: Any) -> Any:
            if not self._is_now():
                return generate(*args, **kwargs)
            with profile(activities=[ProfilerActivity.CPU]) as recorded:
                generated = generate(*args, **kwargs)
            self.sections.append(_top("generation", recorded))
            return generated

        return profiled

    def _then_training(self, score: Callable[..., Any]) -> Callable[..., Any]:
        def scored(*args: Any, **kwargs: Any) -> Any:
            result = score(*args, **kwargs)
            if self._is_now():
                self.training = profile(activities=[ProfilerActivity.CPU])
                self.training.__enter__()
            return result

        return scored

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.training is None:
            return
        self.training.__exit__(None, None, None)
        self.sections.append(_top("training", self.training))
        self.training = None
        seconds = self.floor.seconds(PROFILED_STEP - 1)
        self.sections.append(
            f"Floor: {self.floor.decoded[-1]:,} tokens read and drawn, {seconds['generation']:.2f} s; "
            f"{self.floor.trained[-1]:,} tokens trained on, {seconds['training']:.2f} s"
        )
        self.page.write_text("\n\n".join(self.sections), encoding="utf-8")


def _top(name: str, recorded: Any) -> str:
    table = recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=NUM_SHOWN, max_name_column_width=48)
    keep = [line[:120] for line in table.splitlines()]
    return f"== {name} ==\n" + "\n".join(keep)


def gemm_rate(*, rows: int, inner: int, columns: int) -> float:
    """FLOP a second of (rows x inner) @ (inner x columns) in float32 on this machine, with torch's threads: the best that was seen."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    shortest, began = math.inf, time.perf_counter()
    while (start := time.perf_counter()) - began < GEMM_SECONDS:
        left @ right
        shortest = min(shortest, time.perf_counter() - start)
    return 2 * rows * inner * columns / shortest
