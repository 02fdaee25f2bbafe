"""Run under `accelerate launch`: the same completions through TRL's trainer and ours, in the same processes.

Found for each case: the largest difference between the parameters the two end with, over all processes. Under DeepSpeed also what
bfloat16 loses of a sum over micro-batches.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from tinyzero_trl.config import BatchingSettings, sum_gradients_in_float32
from tinyzero_trl.trainer import TinyZeroTrainer

OFF = BatchingSettings(False, False, None, False, False)


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


def new_trainer(model: str, trainer_class: type, case: dict[str, Any]) -> Any:
    """A trainer whose completions are forced, unless `case` says otherwise."""
    case = dict(case)
    with_logps, batching = case.pop("with_logps", False), case.pop("batching", None)
    sums_in_float32, for_deepspeed = case.pop("sums_in_float32", False), case.pop("zero_optimization", {})
    constant, is_forced = case.pop("constant", False), case.pop("forced", True)
    extras = {} if trainer_class is GRPOTrainer else {"batching": BatchingSettings(**(batching or {}))}
    extras |= {"peft_config": case.pop("peft_config", None)}
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
    args = GRPOConfig(**values)
    if sums_in_float32:
        sum_gradients_in_float32(args.deepspeed_plugin.deepspeed_config)
    if for_deepspeed:
        args.deepspeed_plugin.deepspeed_config["zero_optimization"] |= for_deepspeed
    trainer = trainer_class(
        model=model,
        reward_funcs=(lambda completions, **columns: [0.5] * len(completions)) if constant else reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": f"{n} {'x' * (n % 7)} ="} for n in range(32)]),
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        **extras,
    )
    return forced(trainer, with_logps=with_logps) if is_forced else trainer


def run(model: str, trainer_class: type, case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    trainer = new_trainer(model, trainer_class, case)
    before = parameters(trainer)
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


def sums_in_bfloat16(model: str) -> dict[str, float]:
    """The distance of 16 micro-batches of one row from one micro-batch of 16 rows, in DeepSpeed's float32 weights after a step, by the type they are summed in.

    Relative to what the step changes; what is left in float32 is what each micro-batch's own gradient is rounded by.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    shared = {"bf16": True, "max_steps": 1, "loss_type": "dr_grpo", "batching": vars(OFF), "max_grad_norm": 0.0}
    names: list[str] = []

    def after(num_micro_steps: int, **more: Any) -> torch.Tensor:
        sizes = {"per_device_train_batch_size": 16 // num_micro_steps, "gradient_accumulation_steps": num_micro_steps}
        _, _, trainer = run(model, TinyZeroTrainer, {**shared, **sizes, **more})
        names[:] = [name for name, _ in trainer.model.named_parameters()]
        # Every process takes part in gathering each.
        return torch.cat([safe_get_full_fp32_param(p).detach().flatten() for p in trainer.model.parameters()])

    once, in_bfloat16 = after(1, sums_in_float32=True), after(16)
    in_float32 = after(16, sums_in_float32=True)
    file = load_file(Path(model) / "model.safetensors")
    step = once - torch.cat([file[name].bfloat16().float().flatten() for name in names])
    return {
        "bfloat16": float((in_bfloat16 - once).norm() / step.norm()),
        "float32": float((in_float32 - once).norm() / step.norm()),
    }
