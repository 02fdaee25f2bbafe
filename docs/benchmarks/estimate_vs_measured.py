"""`tinyzero estimate` against the memory real runs take on a CPU: each case a run of grpo.py in a process of its own.

python docs/benchmarks/estimate_vs_measured.py                 # every case, six minutes on one core
python docs/benchmarks/estimate_vs_measured.py --case kv-cache  # one of them
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 0.20
PROMPT_TOKENS = 26
"""Tokens of every prompt, with the tiny model's tokenizer."""
COMMON = (
    *("+countdown=grpo-tiny", "trainer.max_steps=2", "trainer.eval_strategy=no", "trainer.eval_on_start=false"),
    *("trainer.save_strategy=no", "data.num_eval_rows=0", "data.num_train_rows=64", "give_up_after=0"),
    # Random weights solve nothing: every group is constant, and is to be trained on all the same.
    *("batching.skip_constant_groups=false", "trainer.num_generations=4"),
)


@dataclass(frozen=True)
class Case:
    """One run: a Llama with random weights, and keys of the recipe."""

    name: str
    about: str
    layers: int
    hidden: int
    intermediate: int
    vocab: int
    words: tuple[str, ...]
    heads: int = 8
    kv_heads: int = 2


def _sizes(rows: int, steps: int, completion: int) -> tuple[str, ...]:
    return (
        f"trainer.per_device_train_batch_size={rows}",
        f"trainer.gradient_accumulation_steps={steps}",
        "batching.completions_per_step=null",
        f"trainer.max_completion_length={completion}",
    )


LORA = (
    *("model.use_peft=true", "model.lora_r=16", "model.lora_alpha=32", "model.lora_dropout=0.0"),
    "model.lora_target_modules=[all-linear]",
)
CASES = (
    Case("states", "weights, gradients and Adam", 12, 768, 2560, 65536, _sizes(2, 2, 16)),
    Case("states-sgd", "the same without Adam's state", 12, 768, 2560, 65536, (*_sizes(2, 2, 16), "trainer.optim=sgd")),
    Case("states-reference", "the same and a reference model", 12, 768, 2560, 65536, (*_sizes(2, 2, 16), "trainer.beta=0.01")),
    Case("lora", "an adapter on as many weights", 12, 768, 2560, 65536, (*_sizes(4, 2, 64), *LORA)),
    Case("activations", "8 rows of 222 tokens", 12, 256, 1024, 8192, _sizes(8, 2, 192)),
    Case(
        "checkpointing", "24 rows of 222 tokens, each layer computed anew", 12, 256, 1024, 8192,
        (*_sizes(24, 1, 192), "trainer.gradient_checkpointing=true"),
    ),
    Case("lora-activations", "8 rows of 222 tokens, an adapter trained", 12, 256, 1024, 8192, (*_sizes(8, 2, 192), *LORA)),
    Case("logits", "16 rows of 62 tokens, Qwen's vocabulary of 151,936", 2, 128, 512, 151936, _sizes(16, 1, 32)),
    Case(
        "kv-cache", "256 rows of 222 tokens sampled at once", 12, 128, 256, 2048,
        (*_sizes(16, 16, 192), "trainer.max_steps=1"), kv_heads=8,
    ),
)  # fmt: skip


def make_model(case: Case, folder: Path) -> None:
    """The case's model, with the tiny model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from tinyzero_trl.models import load_path

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=case.vocab,
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    disable_progress_bar()
    LlamaForCausalLM(shape).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(load_path("tiny")) / name, folder / name)


def words_of(case: Case, folder: Path) -> list[str]:
    """The command line of the case's run, below `folder`."""
    return [*COMMON, f"model.model_name_or_path={folder / 'model'}", f"output_dir={folder / 'run'}", *case.words]


def measure(case: Case, folder: Path) -> int:
    """Bytes the case's run takes at its peak, beyond what the libraries take once they are imported."""
    import datasets  # noqa: F401
    import peft  # noqa: F401

    import tinyzero_trl.trainer  # noqa: F401
    from tinyzero_trl import grpo

    sys.path.insert(0, str(Path(__file__).parent))
    from watch import peak, reset_peak

    resident = reset_peak()
    grpo.train(words_of(case, folder))
    return peak() - resident


def estimated(case: Case, folder: Path) -> dict[str, Any]:
    """The output of `tinyzero estimate --json` for the same command line."""
    from tinyzero_trl import cli

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main(["estimate", "--json", "--prompt_tokens", str(PROMPT_TOKENS), *words_of(case, folder)])
    if code:
        raise RuntimeError(f"{case.name}: tinyzero estimate ended with {code}")
    return dict(json.loads(printed.getvalue()))


def compared(case: Case) -> dict[str, Any]:
    """Both, in GiB, and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(case, folder / "model")
        run = [sys.executable, __file__, "--measure", str(folder), "--case", case.name]
        # Freed blocks go back to the system at once. Left alone, glibc keeps those below 32 MiB for later, which most
        # tensors of models this small are: the resident peak would be what was ever freed, too.
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "MALLOC_MMAP_THRESHOLD_": str(256 * 1024)}
        ended = subprocess.run(run, capture_output=True, text=True, env=env)
        if ended.returncode:
            raise RuntimeError(f"{case.name}: {ended.stderr[-2000:]}")
        measured = int(ended.stdout.strip().splitlines()[-1])
        estimate = estimated(case, folder)
    return {
        "case": case.name,
        "about": case.about,
        "phase": estimate["peak_phase"],
        "parameters": estimate["num_parameters"],
        "estimated": estimate["peak_bytes"] / 2**30,
        "measured": measured / 2**30,
        "ratio": estimate["peak_bytes"] / measured,
        "phases": {name: sum(held.values()) / 2**30 for name, held in estimate["phases"].items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path, help="also write what was found here")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    chosen = [case for case in CASES if arguments.case is None or case.name in arguments.case]
    if arguments.measure:
        print(measure(chosen[0], arguments.measure))
        return 0
    print(
        "| case | what it holds | weights | phase of the peak | estimated GiB | measured GiB | estimated / measured |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found = []
    for case in chosen:
        result = compared(case)
        found.append(result)
        print(
            f"| {case.name} | {case.about} | {result['parameters'] / 1e6:.0f} M | {result['phase']} | {result['estimated']:.2f} | "
            f"{result['measured']:.2f} | {result['ratio']:.2f} |",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return 1 if any(abs(result["ratio"] - 1) > TOLERANCE for result in found) else 0


if __name__ == "__main__":
    sys.exit(main())
