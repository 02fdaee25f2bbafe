"""A run that stopped and went on is the run that never stopped, bit for bit (faults C-7, C-9, C-10, C-11, C-20)."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from equal_runs import different

from tinyzero_trl.config import CriticSettings, CurriculumSettings, ReplaySettings
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.generation.transformers_rollout import transformers_rollout
from tinyzero_trl.runs import record
from tinyzero_trl.storage import manifest
from tinyzero_trl.task import Outcome, Verdict
from tinyzero_trl.tasks.countdown import TASK
from tinyzero_trl.trainer import TinyZeroTrainer


def is_lucky(text: str) -> bool:
    """About one in three of the texts that random weights write."""
    return len(text) % 3 == 0


def luck(completions: list[str], **columns: object) -> list[float]:
    """A reward that leaves some groups without signal."""
    return [float(is_lucky(text)) for text in completions]


def verify(response: str, **columns: object) -> Verdict:
    return Verdict(Outcome.correct if is_lucky(response) else Outcome.wrong_value)


LUCKY: dict[str, Any] = {
    "task": dataclasses.replace(TASK, verify=verify),
    "reward_funcs": luck,
    "rollout_func": transformers_rollout,
    "max_completion_length": 4,
}
"""A task that random weights solve now and then."""
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "mu = 2, inside a cycle": ({"num_iterations": 2}, 3),
    "two steps a batch, inside a cycle": ({"steps_per_generation": 4}, 3),
    "two batches a step": ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, 3),
    "the second epoch": ({"rows": 8}, 3),
    "the end of an epoch": ({"rows": 8}, 2),
    "the second epoch, mu = 2, logs of two steps": ({"rows": 8, "num_iterations": 2, "logging_steps": 2}, 5),
    "a synchronised reference": ({"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}, 3),
    "a critic, warming up, inside a cycle": (
        {"algorithm": "ppo", "critic": CriticSettings(warm_start_prompts=10), "num_iterations": 2},
        3,
    ),
    "replay": (LUCKY | {"replay": ReplaySettings(num_groups=4), "num_iterations": 2}, 3),
    "an adaptive curriculum, drawn": (LUCKY | {"curriculum": CurriculumSettings(by="success", kind="weight")}, 3),
    "an adaptive curriculum, in order": (
        LUCKY | {"curriculum": CurriculumSettings(by="success", kind="order"), "rows": 8},
        3,
    ),
    "dynamic sampling": (LUCKY | {"dynamic_sampling_rounds": 2, "num_iterations": 2}, 3),
    "evaluation on the way": (
        {"eval_strategy": "steps", "eval_steps": 2, "eval_on_start": True, "num_iterations": 2},
        3,
    ),
    "a budget of tokens": ({"max_generated_tokens": 700, "max_steps": 50}, 3),
    "all of them": (
        LUCKY
        | {
            "replay": ReplaySettings(num_groups=4),
            "dynamic_sampling_rounds": 1,
            "curriculum": CurriculumSettings(by="success", kind="weight"),
            "max_generated_tokens": 400,
            "num_iterations": 2,
        },
        3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, build: Any, tmp_path: Path) -> None:
    changes, stop = dict(CASES[name][0]), CASES[name][1]
    num_rows = changes.pop("rows", 16)
    rows = [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(num_rows)]
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "rows": rows, "task": TASK, **changes}
    settings["output_dir"] = str(tmp_path / "run")
    if "eval_strategy" in settings:
        settings["eval_rows"] = rows[:8]
    straight = build(TinyZeroTrainer, **settings)
    straight.train()
    assert straight.state.global_step >= 5
    kept = tmp_path / "straight"
    shutil.copytree(tmp_path / "run", kept)
    for step in range(stop + 1, straight.state.global_step + 1):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
        (tmp_path / "run" / "rollouts" / f"train-{step:08d}.parquet").unlink(missing_ok=True)
    record.cut_metrics(tmp_path / "run", step=stop)
    resumed = build(TinyZeroTrainer, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert different(tmp_path / "run", kept) == []


@pytest.mark.slow
@pytest.mark.alone
def test_a_run_of_two_processes_stopped_by_a_signal_to_one_goes_on_as_if_it_had_not(
    launched: Callable[[str], Path],
) -> None:
    """C-9, C-13, T-5, T-6: both stop after the same step, inside a generation cycle, and each goes on with its own rollouts."""
    folder = launched("ddp")
    assert different(folder / "stopped", folder / "straight") == []
    rollouts = [
        json.loads((folder / "stopped/checkpoint-3" / f"rollout_state-{rank}.json").read_text()) for rank in (0, 1)
    ]
    assert all(state["rollouts"] for state in rollouts)


def test_a_checkpoint_without_its_rollouts_or_a_weight_is_refused(build: Any, tmp_path: Path) -> None:
    """C-5, C-7. Faults that the manifest does not see: the checkpoint was sealed like this."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "num_iterations": 2}
    trainer = build(TinyZeroTrainer, **settings)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    (folder / "rollout_state-0.json").rename(tmp_path / "state")
    with pytest.raises(ConfigError, match="inside a generation cycle and has no rollout_state"):
        build(TinyZeroTrainer, **settings).train(resume_from_checkpoint=str(folder))
    assert manifest.why_not_usable(folder) == "lacks rollout_state-0.json"
    boundary = Path(trainer.args.output_dir) / "checkpoint-2"
    (boundary / "rollout_state-0.json").unlink()
    weights = safetensors.torch.load_file(boundary / "model.safetensors")
    build(TinyZeroTrainer, **settings).train(resume_from_checkpoint=str(boundary))
    del weights["model.norm.weight"]
    safetensors.torch.save_file(weights, boundary / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="missing .*model.norm.weight"):
        build(TinyZeroTrainer, **settings).train(resume_from_checkpoint=str(boundary))
