"""SIGKILL at random moments, also while saving; the run goes on and ends as if nothing had been (faults C-1, C-8, T-8).

This file is its own program: one process imports the libraries once and forks a child for each attempt.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

STEPS = 8


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [20, pytest.param(100, marks=pytest.mark.nightly)])
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    num_kills: int, tiny_llama: Path, tmp_path: Path
) -> None:
    command = [sys.executable, __file__, str(tiny_llama), str(tmp_path), str(num_kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["kills"] == num_kills
    assert report["different"] == []


def attempt(model: Path, folder: Path) -> None:
    """Train in `folder` from its newest usable checkpoint to the end."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    from tinyzero_trl import manifest, record
    from tinyzero_trl.tasks.countdown import TASK
    from tinyzero_trl.trainer import TinyZeroTrainer

    start = manifest.newest_usable(folder).path
    record.cut_metrics(folder, step=int(start.name.split("-")[1]) if start else 0)
    rows = [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(8)]
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=8, gradient_accumulation_steps=2, num_generations=4,
        max_completion_length=8, max_steps=STEPS, num_iterations=2, learning_rate=1e-3, logging_steps=1, save_steps=1,
        save_total_limit=2, report_to="none", bf16=False, use_cpu=True, seed=7, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = TinyZeroTrainer(
        model=str(model), reward_funcs=shortness, args=args, train_dataset=Dataset.from_list(rows), task=TASK,
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(start) if start else None)


def shortness(completions: list[str], **columns: object) -> list[float]:
    return [1.0 / (1 + len(text)) for text in completions]


def fork(model: Path, folder: Path) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        quiet = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        attempt(model, folder)
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> None:
    assert os.waitpid(child, 0)[1] == 0, "an attempt failed by itself"


def different(mine: Path, theirs: Path) -> list[str]:
    """Names of what is not equal in two finished runs."""
    import pyarrow.parquet as pq
    import safetensors.torch
    import torch

    def metrics(folder: Path) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        kept = ("step", "loss", "grad_norm", "learning_rate", "reward", "entropy", "accuracy", "num_tokens")
        return [{key: entry[key] for key in kept} for entry in entries if "reward" in entry]

    names = [] if metrics(mine) == metrics(theirs) else ["metrics.jsonl"]
    last = f"checkpoint-{STEPS}"
    weights, others = (safetensors.torch.load_file(run / last / "model.safetensors") for run in (mine, theirs))
    names += [name for name in others if not torch.equal(weights[name], others[name])]
    states = [torch.load(run / last / "optimizer.pt", weights_only=True)["state"] for run in (mine, theirs)]
    for number, state in states[1].items():
        names += [f"optimizer {number} {key}" for key in state if not torch.equal(states[0][number][key], state[key])]
    for shard in sorted((theirs / "rollouts").glob("*.parquet")):
        if not pq.read_table(mine / "rollouts" / shard.name).equals(pq.read_table(shard)):
            names.append(shard.name)
    return names


def main(model: Path, work: Path, num_kills: int) -> None:
    import datasets  # noqa: F401
    import trl  # noqa: F401

    import tinyzero_trl.trainer  # noqa: F401

    dice = random.Random(num_kills)
    straight, folder = work / "straight", work / "killed"
    straight.mkdir()
    began = time.monotonic()
    ended(fork(model, straight))
    length = time.monotonic() - began
    kills, saving, wrong = 0, 0, []
    while kills < num_kills:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        while kills < num_kills:
            child = fork(model, folder)
            time.sleep(dice.uniform(0.1, 0.7) * length)
            if os.waitpid(child, os.WNOHANG)[0]:
                break  # done before its time; the next run of the chain begins
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills += 1
            saving += (folder / "unfinished").exists()
        else:
            ended(fork(model, folder))
        wrong += different(folder, straight)
    print(json.dumps({"kills": kills, "while_saving": saving, "different": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
