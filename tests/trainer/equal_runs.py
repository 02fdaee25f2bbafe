"""Comparison of two finished runs, bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

TIMES = ("seconds", "step_time", "tokens_per_second", "runtime", "samples_per", "steps_per", "rewards/time_share")
"""First words of the metrics that differ between any two runs, `train_` or `eval_` before it or not."""


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in entry.items() if not re.sub("^(train|eval)_", "", key).startswith(TIMES)}
        for entry in entries
    ]


def different(mine: Path, theirs: Path) -> list[str]:
    """Names of what differs: metrics, rollouts, and every file of the last checkpoint but its settings."""
    import pyarrow.parquet as pq
    import safetensors.torch
    import torch
    from transformers.trainer import safe_globals

    names = [f"metrics.jsonl{place}" for place in _places(metrics_of(mine), metrics_of(theirs))]
    shards = [{path.name for path in (run / "rollouts").glob("*.parquet")} for run in (mine, theirs)]
    names += sorted(shards[0] ^ shards[1])
    for shard in sorted(shards[0] & shards[1]):
        tables = [pq.read_table(run / "rollouts" / shard) for run in (mine, theirs)]
        names += [] if tables[0].equals(tables[1]) else [shard]
    last = max((theirs).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])).name
    for path in sorted((theirs / last).iterdir()):
        other = mine / last / path.name
        if path.suffix == ".safetensors":
            pair = [safetensors.torch.load_file(file) for file in (path, other)]
        elif path.suffix in (".pt", ".pth"):
            with safe_globals():
                pair = [torch.load(file, weights_only=True) for file in (path, other)]
        elif path.name.startswith("rollout_state"):
            pair = [
                {k: v for k, v in json.loads(file.read_text()).items() if k != "step_time"} for file in (path, other)
            ]
        else:
            continue
        names += [f"{last}/{path.name}{place}" for place in _places(*pair)]
    return names


def _places(mine: Any, theirs: Any, at: str = "") -> list[str]:
    """Where two nested values differ."""
    import torch

    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return [at]
        return [] if ((mine == theirs) | (mine.isnan() & theirs.isnan())).all() else [at]
    if isinstance(mine, dict) and isinstance(theirs, dict):
        only = [f"{at}/{key}" for key in mine.keys() ^ theirs.keys()]
        return only + [
            place for key in mine.keys() & theirs.keys() for place in _places(mine[key], theirs[key], f"{at}/{key}")
        ]
    if isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)):
        if len(mine) != len(theirs):
            return [at]
        return [place for n, pair in enumerate(zip(mine, theirs, strict=True)) for place in _places(*pair, f"{at}/{n}")]
    if hasattr(mine, "tobytes"):
        return [] if mine.tobytes() == theirs.tobytes() else [at]
    return [] if mine == theirs or (mine != mine and theirs != theirs) else [at]
