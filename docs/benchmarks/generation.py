"""Tokens per second of our sampler, beside an earlier commit's and beside the floor: python docs/benchmarks/generation.py --threads 2

The model has the shipped model's shape and random weights. Lengths are forced by the uniform numbers that tokens are drawn with (0 draws
token 0, which ends a completion), so that both samplers do the same work. Each measurement is a process of its own, the two by turns.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
BEFORE = "10309a8"
"""The last commit whose sampler computed batch after batch, through the model's own forward pass."""
SAMPLES = 8
PROMPT_TOKENS = (18, 28)
"""Range of a prompt's tokens, those of the recipe +countdown=grpo-tiny."""
LENGTHS = {"median": 85, "sigma": 0.6, "cap": 256}
"""Lognormal lengths of completions as a trained policy has them: about 100 tokens on average."""
LEAST_UNIFORM = 0.5
"""Tokens that may not end a completion are drawn above it: random weights give the end token far less."""
WARM_UP_ROWS, WARM_UP_TOKENS = 64, 8
RATE_SECONDS = 0.3
"""Seconds for which a rate is measured."""


def measure(num_rows: int, threads: int) -> dict[str, Any]:
    """Wall and CPU seconds in which this process's sampler completes all rows, their tokens, and the floor."""
    import numpy as np
    import torch
    from forced import Lengths
    from transformers import AutoConfig, LlamaForCausalLM

    from tinyzero_trl.generation import sampler
    from tinyzero_trl.models import load_path

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = LlamaForCausalLM(AutoConfig.from_pretrained(load_path("tiny"))).eval()
    rng = np.random.default_rng(0)
    lengths = torch.tensor(Lengths(**LENGTHS).draw(rng, num_rows, scale=1.0))
    prompts = [
        rng.integers(2, model.config.vocab_size, size).tolist()
        for size in rng.integers(*PROMPT_TOKENS, num_rows // SAMPLES)
    ]
    uniforms = sampler.uniforms

    def forced(seeds: torch.Tensor, place: Any) -> torch.Tensor:
        return torch.where(lengths[seeds] == place + 1, 0.0, uniforms(seeds, place).clamp(min=LEAST_UNIFORM))

    def drawn(rows: int, tokens: int) -> list[int]:
        sampled = sampler.sample(
            model,
            [prompts[row // SAMPLES] for row in range(rows)],
            seeds=range(rows),
            max_new_tokens=tokens,
            temperature=1.0,
            eos_token_ids=[0],
            pad_token_id=1,
        )
        return [len(ids) for ids in sampled.completion_ids]

    sampler.uniforms = forced
    drawn(WARM_UP_ROWS, WARM_UP_TOKENS)
    began, cpu_began = time.perf_counter(), time.process_time()
    found = drawn(num_rows, LENGTHS["cap"])
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    if found != lengths.tolist():
        raise RuntimeError(f"the lengths of {sampler.__file__} are not those that were forced")
    return {"seconds": seconds, "cpu": cpu, "tokens": sum(found), **floor(model, prompts, found)}


def floor(model: Any, prompts: list[list[int]], lengths: list[int]) -> dict[str, float]:
    """Seconds of the matrix products of the weights alone, and of reading each token's keys and values once, both at measured rates.

    Products: all tokens and those of different prompts, in batches as wide as all rows. Reading: a sum over as many bytes as the
    cache has when half of the tokens are drawn.
    """
    import torch

    num_rows, config = len(lengths), model.config
    maps = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {weight.shape[1]: torch.randn(num_rows, weight.shape[1]) for weight in maps}
    with torch.no_grad():
        of_a_pass = _seconds(lambda: [torch.nn.functional.linear(inputs[weight.shape[1]], weight) for weight in maps])
    of_a_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    read = sum(
        of_a_token * length * (len(prompts[row // SAMPLES]) + (length + 1) / 2) for row, length in enumerate(lengths)
    )
    cache = torch.ones(of_a_token * num_rows * sum(lengths) // num_rows // 2 // 4)
    return {
        "products": of_a_pass * (sum(lengths) + sum(map(len, prompts))) / num_rows,
        "reading": _seconds(cache.sum) * read / (4 * len(cache)),
    }


def _seconds(call: Any) -> float:
    """CPU seconds of a call."""
    call()
    num, began, cpu_began = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < RATE_SECONDS or num < 2:
        call()
        num += 1
    return (time.process_time() - cpu_began) / num


def table(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str:
    """Markdown: what both took at least, the ratio, and the floor."""
    names = {"seconds": "seconds", "cpu": "CPU seconds of all threads"}
    rows = [f"| | {BEFORE} | now | ratio |", "| --- | --- | --- | --- |"]
    for key, name in names.items():
        first, second = (min(one[key] for one in found) for found in (before, now))
        rows.append(f"| {name} | {first:.2f} | {second:.2f} | **{first / second:.2f}** |")
        rates = [one["tokens"] / value for one, value in ((before[0], first), (now[0], second))]
        unit = "second" if key == "seconds" else "CPU second"
        rows.append(f"| tokens a {unit} | {rates[0]:,.0f} | {rates[1]:,.0f} | |")
    every = [*before, *now]
    rows += [
        f"| floor: matrix products of the weights, CPU seconds | {min(one['products'] for one in every):.2f} | | |",
        f"| floor: reading keys and values, CPU seconds | {min(one['reading'] for one in every):.2f} | | |",
    ]
    return "\n".join(rows)


def main() -> int:
    """Measure both samplers by turns and print the table; returns exit code 0."""
    arguments = _parser().parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.rows, arguments.threads)))
        return 0
    found: dict[str, list[dict[str, Any]]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", str(REPOSITORY), "archive", BEFORE, "src"], check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(folder, filter="data")
        sources = {"before": Path(folder) / "src", "now": REPOSITORY / "src"}
        for _ in range(arguments.repeats):
            for name, source in sources.items():
                words = [sys.executable, __file__, "--measure", "--rows", str(arguments.rows)]
                words += ["--threads", str(arguments.threads)]
                environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(arguments.threads)}
                run = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
                found[name].append(json.loads(run.stdout.splitlines()[-1]))
    command = " ".join(["python", "docs/benchmarks/generation.py", *sys.argv[1:]])
    tokens = found["now"][0]["tokens"]
    print(
        f"`{command}`: {arguments.threads} threads, load {os.getloadavg()[0]:.1f}; {arguments.rows} rows, {tokens:,} tokens; "
        f"the best of {arguments.repeats} each.\n\n{table(found['before'], found['now'])}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of each process (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each sampler, by turns (default: 3)")
    parser.add_argument("--rows", type=int, default=512, help="completions, 8 of each prompt (default: 512)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
