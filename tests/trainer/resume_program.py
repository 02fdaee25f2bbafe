"""Run under `accelerate launch`: a run that never stops, one that process 1 is told to stop, and its continuation."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from datasets import Dataset
from faults import at, signals
from transformers import AutoTokenizer
from trl import GRPOConfig

from tinyzero_trl.runs import record
from tinyzero_trl.tasks.countdown import TASK
from tinyzero_trl.trainer import TinyZeroTrainer

STEPS, STOP = 4, 3


def shortness(completions: list[str], **columns: object) -> list[float]:
    return [1.0 / (1 + len(text)) for text in completions]


def trainer_in(folder: Path, model: str) -> Any:
    rows = [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(8)]
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4,
        max_completion_length=8, max_steps=STEPS, num_iterations=2, learning_rate=1e-3, logging_steps=1, save_steps=STEPS,
        report_to="none", bf16=False, use_cpu=True, seed=7, disable_tqdm=True, gradient_checkpointing=False,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    return TinyZeroTrainer(
        model=model, reward_funcs=shortness, args=args, train_dataset=Dataset.from_list(rows), task=TASK,
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )  # fmt: skip


def stopped_and_resumed(model: str, folder: Path) -> None:
    trainer_in(folder / "straight", model).train()
    stopped = trainer_in(folder / "stopped", model)
    if stopped.accelerator.process_index == 1:
        at(stopped, "_get_grad_norm", step=STOP, do=signals(signal.SIGTERM))
    stopped.train()
    assert (stopped.interrupted_by, stopped.state.global_step) == (signal.SIGTERM, STOP)
    if stopped.accelerator.is_main_process:
        record.cut_metrics(folder / "stopped", step=STOP)
    stopped.accelerator.wait_for_everyone()
    trainer_in(folder / "stopped", model).train(resume_from_checkpoint=str(folder / "stopped" / f"checkpoint-{STOP}"))
