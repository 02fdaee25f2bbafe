"""A rollout beside the one that is trained on or recorded: its tokens count, its metrics leave no trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def extra_rollout(trainer: Any, *, temperature: float, mode: str) -> Iterator[None]:
    """Inside, `trainer` generates and scores at `temperature`; what it adds to the metrics of `mode` is taken out again."""
    num_entries = {name: len(values) for name, values in trainer._metrics[mode].items()}
    pending, trainer._pending_metrics = trainer._pending_metrics, defaultdict(list)
    extra, trainer._pending_extra_logs = trainer._pending_extra_logs, defaultdict(list)
    trainer.rollout_temperature = temperature
    try:
        yield
    finally:
        trainer.rollout_temperature = None
        trainer._pending_metrics, trainer._pending_extra_logs = pending, extra
    metrics = trainer._metrics[mode]
    for name in list(metrics):
        metrics[name] = metrics[name][: num_entries.get(name, 0)]
        if not metrics[name]:
            del metrics[name]
