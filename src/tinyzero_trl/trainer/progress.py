"""Progress of a run: one live line in a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

RECENT = 8
"""Steps the shown accuracy and the time left are averaged over."""


class StepProgress(TrainerCallback):
    """Our progress in the place of transformers' bar and of its printed dicts."""

    def __init__(self, *, budget: int | None) -> None:
        """budget: tokens the run ends with; None where it ends with its steps."""
        self.budget = budget
        self.console = Console(file=sys.stdout, soft_wrap=True)
        self.bar: Progress | None = None
        self.bar_task: TaskID | None = None
        self.accuracies: deque[float] = deque(maxlen=RECENT)
        self.steps_at: deque[tuple[int, float]] = deque(maxlen=RECENT + 1)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.steps_at.append((state.global_step, time.monotonic()))
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.description}"),
                console=self.console,
            )
            self.bar_task = self.bar.add_task("first rollouts", total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_accuracy" in logs:
            line = f"step {state.global_step}/{state.max_steps}  held-out accuracy {logs['eval_accuracy']:.1%}"
            if "eval_accuracy_low" in logs:
                line += f" [{100 * logs['eval_accuracy_low']:.1f}, {100 * logs['eval_accuracy_high']:.1f}]"
            if "eval_greedy_accuracy" in logs:
                line += f", greedy {logs['eval_greedy_accuracy']:.1%}"
            self._say(line)
        elif "reward" in logs:
            if logs.get("accuracy") is not None:
                self.accuracies.append(logs["accuracy"])
            self.steps_at.append((state.global_step, time.monotonic()))
            line = self._line(logs, state)
            if self.bar is not None and self.bar_task is not None:
                self.bar.update(self.bar_task, completed=state.global_step, description=line)
            else:
                self._say(f"step {state.global_step}/{state.max_steps}  {line}")
        elif self.bar is not None and self.bar_task is not None:  # another update on the same rollouts
            self.bar.update(self.bar_task, completed=state.global_step)

    def stop(self) -> None:
        """Take the live line out of the terminal."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, logs: dict[str, Any], state: TrainerState) -> str:
        pieces = [f"reward {logs['reward']:.3f}" if logs["reward"] is not None else "reward none"]
        if self.accuracies:
            pieces.append(f"accuracy {sum(self.accuracies) / len(self.accuracies):.1%}")
        pieces.append(f"length {logs.get('completions/mean_length', 0):.0f}")
        if logs.get("tokens_per_second"):
            pieces.append(f"{logs['tokens_per_second']:,.0f} tok/s")
        (first, began), (last, now) = self.steps_at[0], self.steps_at[-1]
        if self.budget is not None:  # steps are no measure then: they grow longer with the responses
            pieces.append(f"{logs['generated_tokens'] / self.budget:.0%} of the tokens")
        elif last > first:
            pieces.append(f"{_duration((now - began) / (last - first) * (state.max_steps - last))} left")
        return "  ".join(pieces)

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False)


def _duration(seconds: float) -> str:
    """The time in the largest unit that suits it.

    >>> _duration(42), _duration(600), _duration(9000)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
