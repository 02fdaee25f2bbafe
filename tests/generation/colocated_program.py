"""Trains models with vLLM in the same process, and writes what their logs say: `program.py FOLDER whole=MODEL adapter=MODEL`.

A program, since vLLM changes the process it is in; one process imports the libraries once and forks a child for each model.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any


def shortness(completions: list[str], **columns: object) -> list[float]:
    return [1.0 / (1 + len(text)) for text in completions]


def main(folder: Path, models: dict[str, str]) -> int:
    """models: by how their weights are synchronised. Returns the exit code: 1 where a child failed."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401
    from vllm import ModelRegistry

    import tinyzero_trl.generation.colocated
    import tinyzero_trl.trainer  # noqa: F401

    # A process of its own imports vLLM for this and keeps the answer on disk: once, and not for each child.
    ModelRegistry.models["LlamaForCausalLM"].inspect_model_cls()
    codes = []
    for synced, model in models.items():
        (folder / synced).mkdir()
        if child := os.fork():
            codes.append(os.waitpid(child, 0)[1])  # before the next begins: two engines may take the same port
            continue
        code = 1
        try:
            train(model, str(folder / synced), synced)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return int(any(codes))


def train(model: str, output_dir: str, synced: str) -> None:
    """synced: `whole`, `merged` or `adapter`."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    from tinyzero_trl.generation.colocated import ColocatedGeneration
    from tinyzero_trl.generation.server import ON_CPU
    from tinyzero_trl.generation.weights import WeightFolder
    from tinyzero_trl.tasks.countdown import TASK
    from tinyzero_trl.trainer import TinyZeroTrainer

    rows = [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(16)]
    args = GRPOConfig(
        output_dir=output_dir, per_device_train_batch_size=8, gradient_accumulation_steps=2, num_generations=4,
        max_completion_length=12, max_steps=4, learning_rate=3e-2 if synced != "whole" else 3e-3, logging_steps=1, save_strategy="no", report_to="none",
        bf16=False, use_cpu=True, seed=7, disable_tqdm=True, gradient_checkpointing=False, use_vllm=True,
        vllm_mode="colocate", vllm_max_model_length=128,
    )  # fmt: skip
    engine: dict[str, Any] = {**ON_CPU, "dtype": "float32", "kv_cache_memory_bytes": 2**27}
    adapters = WeightFolder(output_dir) if synced == "adapter" else None
    if adapters is not None:
        engine |= {"enable_lora": True, "max_lora_rank": 8}
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = TinyZeroTrainer(
        model=model, reward_funcs=shortness, args=args, train_dataset=Dataset.from_list(rows), task=TASK,
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
        vllm_generation=partial(ColocatedGeneration, engine=engine, adapters=adapters),
        peft_config=lora if synced != "whole" else None, stop=list("abcdefghijklm") if synced == "whole" else (),
    )  # fmt: skip
    below = {
        name: value.detach().clone() for name, value in trainer.model.named_parameters() if not value.requires_grad
    }
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in below.items()), "synchronising moved the weights"
    assert adapters is None or not list(adapters.path.iterdir())
    ids = torch.arange(60, 100)[None]
    effect = 0.0
    if synced != "whole":
        with torch.no_grad(), trainer.model.disable_adapter():
            without = trainer.model(ids).logits
        with torch.no_grad():
            effect = (trainer.model(ids).logits - without).abs().max().item()
    log = [entry for entry in trainer.state.log_history if "sampling/sampling_logp_difference/max" in entry]
    said = {
        "gaps": [entry["sampling/sampling_logp_difference/max"] for entry in log],
        "sync": [entry.get("seconds/sync") for entry in log],
        "effect": effect,
        "grad_norm": [entry["grad_norm"] for entry in log],
    }
    Path(output_dir, "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TRL_EXPERIMENTAL_SILENCE": "1"}
    sys.exit(main(Path(sys.argv[1]), dict(word.split("=", 1) for word in sys.argv[2:])))
