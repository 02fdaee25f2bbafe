"""Runs of two processes on this machine's CPU, as `accelerate launch` starts them; most of what tests need of a config in one launch."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from small_models import make_llama
from tinyzero_trl.config import BatchingSettings, free_port

REPO = Path(__file__).resolve().parents[2]
GRPO = REPO / "src" / "tinyzero_trl" / "grpo.py"
REWARDS = """
import multiprocessing

def short(response: str) -> float:
    return 1 / (1 + len(response))

def short_in_worker(response: str) -> float:
    assert multiprocessing.parent_process() is not None, "not in a worker"
    return short(response)

def sevenths(response: str) -> float:
    return float(len(response) % 7 == 0)
"""
SMALL = (
    *("trainer.max_steps=2", "trainer.warmup_steps=0", "trainer.per_device_train_batch_size=8", "trainer.use_cpu=true"),
    *("trainer.gradient_accumulation_steps=2", "trainer.num_generations=4", "trainer.max_completion_length=16"),
    *("trainer.save_steps=1", "trainer.bf16=false", "data.num_train_rows=200", "data.num_eval_rows=8"),
    "trainer.per_device_eval_batch_size=4",
)
NO_EVAL = ("trainer.eval_strategy=no", "trainer.eval_on_start=false", "trainer.max_steps=3")
PARITY: list[dict[str, Any]] = [
    {},
    {"loss_type": "dapo", "num_iterations": 2, "steps_per_generation": 4},
    {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "loss_type": "dr_grpo"},
    {"beta": 0.1},
    {"with_logps": True, "importance_sampling_level": "sequence", "num_iterations": 2},
    {"constant": True, "weight_decay": 0.1},
    {"batching": vars(BatchingSettings(False, False, None, False, False)), "forced": False, "optim": "adamw_torch",
     "learning_rate": 1e-3, "beta": 0.1, "num_iterations": 2},
    {"batching": {"share_prompts": True}, "num_iterations": 2},
]  # fmt: skip
"""Arguments that TRL's trainer and ours are given side by side."""


def parity_of(config: str) -> list[dict[str, Any]]:
    """DeepSpeed takes its optimizer from the recipe."""
    return PARITY if config == "ddp" else [PARITY[1], PARITY[5], PARITY[7]]


def words_of(folder: Path, model: Path, *, recipe: str = "grpo-tiny", reward: str = "short") -> list[str]:
    """A short run of `recipe` on `model`, with a reward of rewards.py in `folder` in the place of the recipe's: random weights earn it."""
    rewards = ["rewards.equation=0", f"rewards.{folder}/rewards.py:{reward}=1"]
    return [f"+countdown={recipe}", f"model.model_name_or_path={model}", *rewards, *SMALL]


def runs_of(config: str, folder: Path, model: Path) -> dict[str, list[str]]:
    """Command lines of the runs that one launch under `config` does, by the name of their folder."""
    runs = {"plain": words_of(folder, model)}
    if config != "zero1":
        runs["spoiled"] = [
            *(*words_of(folder, model, reward="short_in_worker"), *NO_EVAL, "reward_workers.num_workers=1"),
            *(f"reward_workers.rewards=['{folder}/rewards.py:short_in_worker']", "trainer.max_completion_length=8"),
            "trainer.save_total_limit=5",
        ]
    if config != "zero3":
        runs["critic"] = [*words_of(folder, model, recipe="ppo-tiny"), *NO_EVAL, "critic.warm_start_prompts=8"]
    if config == "ddp":
        runs["one-step"] = [*runs["plain"], "trainer.max_steps=1"]
        runs["changing"] = [
            *(*words_of(folder, model, reward="sevenths"), "trainer.max_steps=4", "trainer.save_steps=4"),
            *("dynamic_sampling_rounds=1", "replay.num_groups=4", "curriculum.by=success", "curriculum.kind=weight"),
        ]
    return {name: [*words, f"output_dir={folder / name}"] for name, words in runs.items()}


def run_all(config: str, folder: Path) -> None:
    """Every run of `runs_of`, and TRL's trainer beside ours, in one launch, on a model made in `folder`; once, whoever asks."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "todo.json").exists():
            return
        (folder / "rewards.py").write_text(REWARDS)
        model = make_llama(folder / "model")
        todo = {"runs": runs_of(config, folder, model), "parity": parity_of(config)} | {
            f"is_{kind}": config == kind for kind in ("ddp", "zero3")
        }
        (folder / "todo.json").write_text(json.dumps({**todo, "model": str(model)}))
        launch(config, Path(__file__).with_name("launched_program.py"), folder)


def launch(config: str, program: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    # A port of its own: another launch on this machine may hold accelerate's default one.
    options = [f"--config_file=recipes/accelerate_configs/{config}.yaml", f"--main_process_port={free_port()}"]
    launcher = [Path(sys.executable).with_name("accelerate"), "launch", "--num_processes=2", *options]
    before = [Path(__file__).with_name("without_shm.py")] if config.startswith("zero") else []
    command = [*map(str, [*launcher, *before, program, *arguments])]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done
