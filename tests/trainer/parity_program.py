"""Run under `accelerate launch`: the same completions through TRL's trainer and ours, in the same processes.

Found for each case: the largest difference between the parameters the two end with, over all processes.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tinyzero_trl.settings import BatchingSettings
from tinyzero_trl.trainer import TinyZeroTrainer


def reward(prompts: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Constant in the groups of two problems of three, so that processes have different numbers of rows with signal."""
    return [
        0.3 if int(prompt.split()[0]) % 3 else ids[0] % 5 / 5.0
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def forced(trainer: Any, *, with_logps: bool) -> Any:
    generator = torch.Generator().manual_seed(trainer.accelerator.process_index)

    def generate(prompt_ids: list[list[int]], *arguments: Any, **options: Any) -> Any:
        lengths = torch.randint(1, 17, (len(prompt_ids),), generator=generator).tolist()
        completions = [torch.randint(6, 200, (length,), generator=generator).tolist() for length in lengths]
        logps = [(torch.randn(length, generator=generator) * 0.3 - 5.56).tolist() for length in lengths]
        return completions, logps if with_logps else None

    trainer._generate_single_turn = generate
    # HF generation stands in for vLLM: the trainer is told only after it is built.
    trainer.use_vllm = with_logps
    return trainer


def parameters(trainer: Any) -> torch.Tensor:
    return torch.cat([getattr(p, "ds_tensor", p).detach().flatten().clone() for p in trainer.model.parameters()])


def run(model: str, trainer_class: type, case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    case = dict(case)
    with_logps, batching = case.pop("with_logps", False), case.pop("batching", None)
    constant, is_forced = case.pop("constant", False), case.pop("forced", True)
    extras = {} if trainer_class is GRPOTrainer else {"batching": BatchingSettings(**(batching or {}))}
    values = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 16,
        "max_steps": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "beta": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        **case,
    }
    trainer = trainer_class(
        model=model,
        reward_funcs=(lambda completions, **columns: [0.5] * len(completions)) if constant else reward,
        args=GRPOConfig(**values),
        train_dataset=Dataset.from_list([{"prompt": f"{n} {'x' * (n % 7)} ="} for n in range(32)]),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        **extras,
    )
    before = parameters(trainer)
    if is_forced:
        forced(trainer, with_logps=with_logps)
    trainer.train()
    return before, parameters(trainer), trainer


def compared(model: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for case in cases:
        before, theirs, stock = run(model, GRPOTrainer, case)
        _, ours, trainer = run(model, TinyZeroTrainer, case)
        local = torch.stack([(theirs - ours).abs().max(), (theirs - before).abs().max(), (ours - before).abs().max()])
        worst = trainer.accelerator.gather(local[None]).amax(0).tolist()
        history = trainer.state.log_history
        signal = [entry["steps_without_signal"] for entry in history if "steps_without_signal" in entry]
        losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (stock, trainer)]
        difference = {"difference": worst[0], "theirs": worst[1], "ours": worst[2]}
        found.append({**difference, "without_signal": signal, "losses": losses})
    return found
