"""Tokens a second of the three engines on this machine, with the shipped model: python docs/benchmarks/engines.py 64 256

Each number is that many prompts of Countdown, at most 128 new tokens each, the best of two rounds. The server's seconds are those from
the first request to the last answer; its start is beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

NEW_TOKENS = 128
ROUNDS = 2
ENGINES = ("transformers", "server", "colocate")


def measure(engine: str, sizes: list[int]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinyzero_trl.config import model_path
    from tinyzero_trl.generation.answers import answers
    from tinyzero_trl.generation.sampler import sample

    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny"))
    prompt = tokenizer("Using the numbers [19, 36, 55], create an equation that equals 72.")["input_ids"]
    drawn: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "temperature": 1.0,
        "eos_token_ids": [tokenizer.eos_token_id],
    }
    model = AutoModelForCausalLM.from_pretrained(model_path("tiny"))
    for size in sizes:
        rates, starts = [], []
        for round_number in range(ROUNDS):
            drawn["seeds"] = list(range(round_number * size, (round_number + 1) * size))
            started = time.perf_counter()
            if engine == "transformers":
                sampled = sample(model, [prompt] * size, pad_token_id=tokenizer.pad_token_id, **drawn)
                taken = time.perf_counter() - started
            else:
                sampled, taken = answers(engine, model_path("tiny"), [prompt] * size, **drawn)
            starts.append(time.perf_counter() - started - taken)
            rates.append(sum(map(len, sampled.completion_ids)) / taken)
        print(f"{engine:>12} {size:5} rows: {max(rates):6.0f} tokens/s, started in {min(starts):.1f} s", flush=True)


if __name__ == "__main__":
    if sys.argv[1] in ENGINES:
        measure(sys.argv[1], [int(word) for word in sys.argv[2:]])
    else:  # a process for each: vLLM changes the one it is in
        for name in ENGINES:
            subprocess.run(
                [sys.executable, __file__, name, *sys.argv[1:]], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True
            )
