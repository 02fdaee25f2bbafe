"""Tokens a second of the three engines on this machine, with the shipped model: python docs/benchmarks/engines.py 64 256

Each number is that many prompts of Countdown, at most 128 new tokens each, the best of three rounds; starting includes the
import of what is started.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NEW_TOKENS = 128
ROUNDS = 3
VARIABLES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive"}
ENGINES = ("transformers", "server", "colocate")


def measure(engine: str, sizes: list[int]) -> None:
    from transformers import AutoTokenizer

    from tinyzero_trl.models import load_path

    tokenizer = AutoTokenizer.from_pretrained(load_path("tiny"))
    prompt = tokenizer("Using the numbers [19, 36, 55], create an equation that equals 72.")["input_ids"]
    started = time.perf_counter()
    with {"transformers": by_transformers, "server": by_server, "colocate": in_process}[engine](tokenizer) as draw:
        print(f"{engine:>12} started in {time.perf_counter() - started:.1f} s", flush=True)
        for size in sizes:
            rates = []
            for number in range(ROUNDS):
                started = time.perf_counter()
                num_tokens = draw([prompt] * size, list(range(number * size, (number + 1) * size)))
                rates.append(num_tokens / (time.perf_counter() - started))
            print(f"{engine:>12} {size:5} rows: {max(rates):6.0f} tokens/s", flush=True)


Draw = Callable[[list[list[int]], list[int]], int]
"""From prompts and seeds to the number of tokens generated."""


@contextmanager
def by_transformers(tokenizer: Any) -> Iterator[Draw]:
    from transformers import AutoModelForCausalLM

    from tinyzero_trl.generation.sampler import sample
    from tinyzero_trl.models import load_path

    model = AutoModelForCausalLM.from_pretrained(load_path("tiny"))
    how: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "temperature": 1.0, "pad_token_id": tokenizer.pad_token_id}
    ends = [tokenizer.eos_token_id]
    yield lambda rows, seeds: sum(map(len, sample(model, rows, seeds=seeds, eos_token_ids=ends, **how).completion_ids))


@contextmanager
def by_server(tokenizer: Any) -> Iterator[Draw]:
    from tinyzero_trl.generation.client import Rows, request_bodies
    from tinyzero_trl.generation.server import Server, ServerSpec
    from tinyzero_trl.models import load_path

    spec = ServerSpec(load_path("tiny"), dtype="float32", max_model_length=512, is_on_cpu=True, weight_transfer="file")
    with tempfile.TemporaryDirectory() as folder:
        server = Server(spec, log=Path(folder) / "log", token_file=Path(folder) / "token")
        server.start()
        server.wait_until_healthy(300)

        def draw(rows: list[list[int]], seeds: list[int]) -> int:
            how = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": NEW_TOKENS}
            bodies = request_bodies(spec.model, rows, Rows(seeds, [tokenizer.eos_token_id]), **how)
            answers = server.http_client.post_all("/v1/completions", bodies, seconds=600)
            return sum(len(answer["choices"][0]["token_ids"]) for answer in answers)

        yield draw
        server.stop()


@contextmanager
def in_process(tokenizer: Any) -> Iterator[Draw]:
    from vllm import SamplingParams

    from tinyzero_trl.generation.client import Rows
    from tinyzero_trl.generation.colocated import SeededLLM
    from tinyzero_trl.generation.server import ON_CPU
    from tinyzero_trl.models import load_path

    llm = SeededLLM(load_path("tiny"), dtype="float32", max_model_len=512, kv_cache_memory_bytes=2**30, **ON_CPU)
    params = SamplingParams(temperature=1.0, max_tokens=NEW_TOKENS, logprobs=0)

    def draw(rows: list[list[int]], seeds: list[int]) -> int:
        llm.rows = Rows(seeds, [tokenizer.eos_token_id])
        outputs = llm.generate([{"prompt_token_ids": row} for row in rows], sampling_params=params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    yield draw


if __name__ == "__main__":
    if sys.argv[1] in ENGINES:
        measure(sys.argv[1], [int(word) for word in sys.argv[2:]])
    else:  # a process for each: vLLM changes the one it is in
        for name in ENGINES:
            subprocess.run(
                [sys.executable, __file__, name, *sys.argv[1:]],
                env={"OMP_NUM_THREADS": "1", **os.environ, **VARIABLES},
                check=True,
            )
