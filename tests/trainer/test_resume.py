"""A run that stopped and went on is the run that never stopped, bit for bit (faults C-7, C-9, C-10, C-11, C-20)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from tinyzero_trl import manifest, record
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.tasks.countdown import TASK
from tinyzero_trl.trainer import TinyZeroTrainer

TIMES = (
    "seconds",
    "step_time",
    "tokens_per_second",
    "train_runtime",
    "train_samples",
    "train_steps",
    "rewards/time_share",
)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if not key.startswith(TIMES)} for entry in entries]


CASES = {
    "mu = 2, inside a cycle": ({"num_iterations": 2}, 3),
    "two steps a batch, inside a cycle": ({"steps_per_generation": 4}, 3),
    "two batches a step": ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, 3),
    "the second epoch": ({"rows": 8}, 3),
    "the end of an epoch": ({"rows": 8}, 2),
    "the second epoch, mu = 2, logs of two steps": ({"rows": 8, "num_iterations": 2, "logging_steps": 2}, 5),
    "a synchronised reference": ({"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, build: Any, tmp_path: Path) -> None:
    changes, stop = dict(CASES[name][0]), CASES[name][1]
    num_rows = changes.pop("rows", 16)
    rows = [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(num_rows)]
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "rows": rows, "task": TASK, **changes}
    settings["output_dir"] = str(tmp_path / "run")
    straight = build(TinyZeroTrainer, **settings)
    straight.train()
    kept = tmp_path / "straight"
    shutil.copytree(tmp_path / "run", kept)
    for step in range(stop + 1, 7):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
        (tmp_path / "run" / "rollouts" / f"train-{step:08d}.parquet").unlink(missing_ok=True)
    record.cut_metrics(tmp_path / "run", step=stop)
    resumed = build(TinyZeroTrainer, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    for left in ("model.safetensors", "rollout_state-0.safetensors"):
        mine, theirs = (
            safetensors.torch.load_file(folder / "checkpoint-6" / left) for folder in (tmp_path / "run", kept)
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), left
    for left in ("optimizer.pt", "scheduler.pt"):
        mine, theirs = (
            torch.load(folder / "checkpoint-6" / left, weights_only=True) for folder in (tmp_path / "run", kept)
        )
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    for mine, theirs in zip(metrics_of(tmp_path / "run"), metrics_of(kept), strict=True):
        assert {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)} == set(), mine["step"]
    shards = sorted(path.name for path in (kept / "rollouts").glob("*.parquet"))
    assert sorted(path.name for path in (tmp_path / "run" / "rollouts").glob("*.parquet")) == shards
    for shard in shards:  # C-20: what is done again is the same
        assert pq.read_table(tmp_path / "run" / "rollouts" / shard).equals(pq.read_table(kept / "rollouts" / shard))


def test_a_checkpoint_without_its_rollouts_or_a_weight_is_refused(build: Any, tmp_path: Path) -> None:
    """C-5, C-7. Faults that the manifest does not see: the checkpoint was sealed like this."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    trainer = build(TinyZeroTrainer, **settings)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    (folder / "rollout_state-0.json").rename(tmp_path / "state")
    with pytest.raises(ConfigError, match="inside a generation cycle and has no rollout_state"):
        build(TinyZeroTrainer, **settings).train(resume_from_checkpoint=str(folder))
    assert manifest.fault(folder) == "lacks rollout_state-0.json"
    boundary = Path(trainer.args.output_dir) / "checkpoint-2"
    (boundary / "rollout_state-0.json").unlink()
    weights = safetensors.torch.load_file(boundary / "model.safetensors")
    build(TinyZeroTrainer, **settings).train(resume_from_checkpoint=str(boundary))
    del weights["model.norm.weight"]
    safetensors.torch.save_file(weights, boundary / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="missing .*model.norm.weight"):
        build(TinyZeroTrainer, **settings).train(resume_from_checkpoint=str(boundary))
