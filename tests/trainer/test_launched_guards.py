"""Two processes: a loss that is not finite on one of them, and rewards in the worker processes of each."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.alone]
REPO = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
import torch
from tinyzero_trl import grpo, trainer
from tinyzero_trl.failures import exit_code_of

compute = trainer.TinyZeroTrainer._compute_loss

def _compute_loss(self, model, inputs):
    is_spoiled = self.model.training and self.state.global_step + 1 == 2 and os.environ["RANK"] == "1"
    return compute(self, model, inputs) + (torch.inf if is_spoiled else 0.0)

trainer.TinyZeroTrainer._compute_loss = _compute_loss
if __name__ == "__main__":
    sys.exit(exit_code_of(grpo.train, sys.argv[1:]))
"""
REWARD = """
import multiprocessing
def short(response):
    assert multiprocessing.parent_process() is not None, "not in a worker"
    return 1 / (1 + len(response))
"""


@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_a_loss_that_is_not_finite_on_one_process_skips_the_step_on_both(
    config: str, tiny_llama: Path, tmp_path: Path
) -> None:
    if config.startswith("zero"):
        pytest.importorskip("deepspeed")
    (tmp_path / "spoiled.py").write_text(PROGRAM)
    (tmp_path / "reward.py").write_text(REWARD)
    reward, run = f"{tmp_path}/reward.py:short", tmp_path / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        *("+countdown=grpo-tiny", f"model.model_name_or_path={tiny_llama}", f"output_dir={run}"),
        *("rewards.equation=0", f"rewards.{reward}=1", f"reward_workers.rewards=['{reward}']"),
        *("reward_workers.num_workers=1", "data.num_train_rows=200", "trainer.eval_strategy=no"),
        *("trainer.eval_on_start=false", "trainer.max_steps=3", "trainer.per_device_train_batch_size=8"),
        *("trainer.gradient_accumulation_steps=2", "trainer.num_generations=4", "trainer.max_completion_length=8"),
        *("trainer.save_steps=1", "trainer.save_total_limit=5"),
    ]
    launcher = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes=2"]
    launcher += [f"--config_file=recipes/accelerate_configs/{config}.yaml", f"--main_process_port={port}"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "spoiled.py"), *words],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    entries = [entry for entry in entries if "skipped_steps" in entry]
    assert [entry["skipped_steps"] for entry in entries] == [0.0, 1.0, 0.0]
    assert [entry["loss"] is None for entry in entries] == [False, True, False]
    assert [entry[f"rewards/{reward}/rejected"] for entry in entries] == [0.0, 0.0, 0.0]
    assert all(entry["reward"] > 0 for entry in entries)
    weights = [load_file(run / f"checkpoint-{step}" / "model.safetensors") for step in (1, 2, 3)]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert not all((weights[1][name] == weights[2][name]).all() for name in weights[0])
    records = [json.loads((run / "faults" / f"non-finite-step-2-rank-{r}.json").read_text()) for r in (0, 1)]
    assert ["inf" in record["losses"] for record in records] == [False, True]
