"""Where the time of one step goes by operation, and what its matrix products alone would take."""

from __future__ import annotations

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
NUM_SHOWN = 12
GEMM_SECONDS = 0.5
"""Seconds for which each product is repeated to measure its rate."""


class Profiled(TrainerCallback):
    """Attached to a trainer, writes `page` after its second step: operations of generation and of training apart."""

    def __init__(self, trainer: Any, *, page: Path):
        self.page, self.trainer = page, trainer
        self.sections: list[str] = []
        self.training: Any = None
        self.completion_ids: list[list[int]] = []
        self.prompt_ids: list[list[int]] = []
        self.advantages: list[bool] = []
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
            self.prompt_ids, self.completion_ids = generated[0], generated[1]
            return generated

        return profiled

    def _then_training(self, score: Callable[..., Any]) -> Callable[..., Any]:
        def scored(*args: Any, **kwargs: Any) -> Any:
            result = score(*args, **kwargs)
            if self._is_now():
                self.advantages = [bool(row.any()) for row in result["advantages"]]
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
        self.sections.append(self._floor())
        self.page.write_text("\n\n".join(self.sections), encoding="utf-8")

    def _floor(self) -> str:
        lengths = [len(ids) for ids in self.completion_ids]
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        num_parameters = sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
        num_parameters += model.get_output_embeddings().weight.numel()
        prompts = sum({tuple(ids): len(ids) for ids in self.prompt_ids}.values())
        # Each forward pass decodes one token of every row still active.
        passes = sum(max(lengths[at : at + DEFAULT_BATCH_SIZE]) for at in range(0, len(lengths), DEFAULT_BATCH_SIZE))
        rows = max(1, round(sum(lengths) / passes))
        trained = sum(
            len(prompt) + length
            for prompt, length, has_signal in zip(self.prompt_ids, lengths, self.advantages, strict=True)
            if has_signal
        )
        decode = 2 * num_parameters * (sum(lengths) + prompts)
        learn = 6 * num_parameters * trained
        hidden, inner = model.config.hidden_size, model.config.intermediate_size
        slow, fast = (gemm_rate(rows=size, inner=hidden, columns=inner) for size in (rows, 4096))
        return (
            f"Floor (matrix products of the weights alone, no attention, no padding): decoding {sum(lengths):,} tokens and "
            f"{prompts:,} of different prompts at {slow / 1e9:.0f} GFLOP/s (rows at once on average: {rows}): {decode / slow:.2f} s; "
            f"training on {trained:,} tokens of {sum(self.advantages)} rows with signal, of {len(lengths)}, "
            f"at {fast / 1e9:.0f} GFLOP/s: {learn / fast:.2f} s"
        )


def _top(name: str, recorded: Any) -> str:
    table = recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=NUM_SHOWN, max_name_column_width=48)
    keep = [line[:120] for line in table.splitlines()]
    return f"== {name} ==\n" + "\n".join(keep)


def gemm_rate(*, rows: int, inner: int, columns: int) -> float:
    """FLOP a second of (rows x inner) @ (inner x columns) in float32 on this machine, with torch's threads."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    num, began = 0, time.perf_counter()
    while time.perf_counter() - began < GEMM_SECONDS:
        left @ right
        num += 1
    return 2 * rows * inner * columns * num / (time.perf_counter() - began)
