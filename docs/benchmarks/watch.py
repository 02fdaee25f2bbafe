"""The cost of each optimizer step of a trainer, ours or TRL's own: seconds by phase, tokens through the model, memory.

On a GPU the clock is read when the device has done what it was given, and memory is the device's; elsewhere it is the process's.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

KIB = 1024


@dataclass
class Step:
    """One optimizer step. Seconds are of the wall clock."""

    seconds: float = 0.0
    """From the first micro-step to the optimizer's update."""
    generation: float = 0.0
    """In `_generate`: sampling, and decoding to text."""
    rewards: float = 0.0
    """In `_calculate_rewards`."""
    scoring: float = 0.0
    """In `_generate_and_score_completions` as a whole, generation, rewards and old log-probabilities included."""
    between: float = 0.0
    """From the update of the step before to this step's first micro-step: logging, saving, loading data."""
    cpu: float = 0.0
    """Processor seconds, all threads together, as `training`: says more than the clock where others use the machine."""
    cpu_by_phase: dict[str, float] = field(default_factory=dict)
    """Processor seconds of `generation`, `rewards`, `scoring` and `between`, as the seconds of those names."""
    tokens: int = 0
    """Computed by the model's forward passes outside generation, padding included."""
    real_tokens: int = 0
    """Those of them that are not padding."""
    passes: int = 0
    """Forward passes outside generation."""
    generated: int = 0
    """Tokens of the completions."""
    peak: int = 0
    """Bytes of resident memory at the highest, beyond what was resident as the step began; on a GPU all that torch had allocated."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Highest bytes allocated on the GPU by phase, named as `tinyzero estimate` names them; empty on a CPU."""
    reserved: int = 0
    """Highest bytes that torch's allocator held on the GPU; 0 on a CPU."""

    @property
    def training(self) -> float:
        """Seconds in everything but generation and rewards."""
        return self.seconds - self.generation - self.rewards


class Watch(TrainerCallback):
    """Attached to a trainer, holds a `Step` for each optimizer step it makes."""

    def __init__(self, trainer: Any):
        self.steps: list[Step] = []
        self.parameters: list[torch.Tensor] = []
        """All parameters as one vector, before the first step and after each; kept only where `keep_parameters`."""
        self.keep_parameters = False
        self._step = Step()
        self._is_on_gpu = next(trainer.model.parameters()).is_cuda
        self._began = self._ended = self._now()
        self._ended_cpu = time.process_time()
        self._resident = 0
        self._is_generating = False
        trainer._generate = self._timed(trainer._generate, "generation")
        trainer._calculate_rewards = self._timed(trainer._calculate_rewards, "rewards")
        trainer._generate_and_score_completions = self._timed(trainer._generate_and_score_completions, "scoring")
        self._model = trainer.model
        trainer.model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)
        trainer.add_callback(self)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if self.keep_parameters and not self.parameters:
            self.parameters.append(self._flat())
        cpu = time.process_time()
        self._step = Step(between=self._now() - self._ended, cpu=-cpu, cpu_by_phase={"between": cpu - self._ended_cpu})
        if self._is_on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._resident = reset_peak()
        self._began = self._now()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._note_peak("forward and backward")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._note_peak("optimizer step")
        self._ended = self._now()
        self._step.seconds = self._ended - self._began
        self._ended_cpu = time.process_time()
        self._step.cpu += self._ended_cpu
        self._step.peak = max(self._step.peaks.values()) if self._is_on_gpu else peak() - self._resident
        self.steps.append(self._step)
        if self.keep_parameters:
            self.parameters.append(self._flat())
            self._ended, self._ended_cpu = self._now(), time.process_time()

    def _now(self) -> float:
        """Seconds of the wall clock, with nothing left to do on the device."""
        if self._is_on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _note_peak(self, phase: str) -> None:
        """Peak allocation of the phase that ends here."""
        if self._is_on_gpu:
            self._step.peaks[phase] = max(self._step.peaks.get(phase, 0), torch.cuda.max_memory_allocated())
            self._step.reserved = max(self._step.reserved, torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()

    def _flat(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten().clone() for parameter in self._model.parameters()])

    def _timed(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._is_generating = phase == "generation" or self._is_generating
            began, began_cpu = self._now(), time.process_time()
            result = method(*args, **kwargs)
            cpu = time.process_time() - began_cpu
            self._step.cpu_by_phase[phase] = self._step.cpu_by_phase.get(phase, 0.0) + cpu
            if phase != "scoring":  # which holds the other two
                self._step.cpu -= cpu
            setattr(self._step, phase, getattr(self._step, phase) + self._now() - began)
            if phase == "generation":
                self._note_peak("generation")
                self._is_generating = False
                self._step.generated += sum(map(len, result[1]))
            return result

        return timed

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        if self._is_generating:
            return
        input_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        mask = kwargs.get("attention_mask")
        self._step.passes += 1
        self._step.tokens += input_ids.numel()
        # Where a prompt is shared, the pass has no padding and a mask of another shape.
        has_padding = mask is not None and mask.shape == input_ids.shape
        self._step.real_tokens += int(mask.sum()) if has_padding else input_ids.numel()


def reset_peak() -> int:
    """Start the peak anew at what is resident now, in bytes; memory that was freed goes back to the system first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Bytes resident at most since `reset_peak` (VmHWM; Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * KIB
