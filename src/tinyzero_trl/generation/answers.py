"""One completion for each prompt from vLLM, for evaluation: the whole set goes in at once, and vLLM fills its batches from it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl.failures import ServerLost
from tinyzero_trl.generation.sampler import Sampled

Drawn = tuple[list[list[int]], list[list[float]], float]
"""Token ids and log-probabilities of each completion, and seconds."""


@dataclass(frozen=True)
class Asked:
    """What is to be answered, and how."""

    model: str
    prompt_ids: Sequence[Sequence[int]]
    seeds: Sequence[int]
    max_new_tokens: int
    temperature: float
    eos_token_ids: Sequence[int]
    batch_size: int | None = None
    """Sequences generated at once at most."""
    on_progress: Callable[[int, int], None] | None = None
    """Called with (prompts done, new tokens)."""
    seconds: float = 24 * 3600.0
    """For all of it, from a server."""

    def sampling(self) -> dict[str, Any]:
        """The whole distribution, by vLLM's names."""
        return {"temperature": self.temperature, "top_p": 1.0, "top_k": 0, "max_tokens": self.max_new_tokens}

    def length(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return max(map(len, self.prompt_ids)) + self.max_new_tokens


def answers(engine: str, model: Path | str, prompt_ids: Sequence[Sequence[int]], **how: Any) -> tuple[Sampled, float]:
    """What `sampler.sample` gives, and the seconds of it without loading, from a server of its own (`server`) or vLLM in this process (`colocate`).

    how: the other fields of Asked. Raises: ServerLost where the server does not start, or ends.
    """
    asked = Asked(str(model), prompt_ids, **how)
    ids, logprobs, taken = {"server": _by_server, "colocate": _in_process}[engine](asked)
    ends = set(asked.eos_token_ids)
    return Sampled(ids, logprobs, [not row or row[-1] not in ends for row in ids]), taken


def _by_server(asked: Asked) -> Drawn:
    import torch

    from tinyzero_trl.generation.calls import ServerFault
    from tinyzero_trl.generation.client import Rows, checked_choice, request_bodies
    from tinyzero_trl.generation.server import Server, ServerSpec

    is_on_cpu = not torch.cuda.is_available()
    spec = ServerSpec(
        model=asked.model,
        dtype="float32" if is_on_cpu else "auto",
        max_model_length=asked.length(),
        is_on_cpu=is_on_cpu,
        weight_transfer="file",
        max_num_seqs=asked.batch_size,
    )

    def count(answer: Any) -> None:
        if asked.on_progress is not None:
            asked.on_progress(1, len(checked_choice(answer)["token_ids"]))

    with tempfile.TemporaryDirectory(prefix="tinyzero-serve-") as folder:
        log = Path(folder) / "server.log"
        server = Server(spec, log=log, token_file=Path(folder) / "token")
        try:
            server.start()
            server.wait_until_healthy(600.0)
            started = time.perf_counter()
            bodies = request_bodies(
                asked.model, asked.prompt_ids, Rows(asked.seeds, asked.eos_token_ids), **asked.sampling()
            )
            given = server.calls.together("/v1/completions", bodies, seconds=asked.seconds, on_answer=count)
            choices = [checked_choice(answer) for answer in given]
            taken = time.perf_counter() - started
        except ServerFault as fault:
            raise ServerLost(str(fault).replace(f" ({log})", "")) from fault
        finally:
            server.stop()
    logprobs = [choice["logprobs"]["token_logprobs"] for choice in choices]
    return [choice["token_ids"] for choice in choices], logprobs, taken


def _in_process(asked: Asked) -> Drawn:
    import os

    import torch

    is_on_cpu = not torch.cuda.is_available()
    if is_on_cpu:
        # Read as vLLM is imported: one process and no threads bound, as in colocate mode.
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import SamplingParams

    from tinyzero_trl.generation.client import Rows
    from tinyzero_trl.generation.colocated import SeededLLM
    from tinyzero_trl.generation.server import ON_CPU

    own: dict[str, Any] = {**ON_CPU, "kv_cache_memory_bytes": 2**30} if is_on_cpu else {}
    if asked.batch_size is not None:
        own["max_num_seqs"] = asked.batch_size
    llm = SeededLLM(
        model=asked.model,
        dtype="float32" if is_on_cpu else "auto",
        max_model_len=asked.length(),
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        **own,
    )
    llm.rows = Rows(asked.seeds, asked.eos_token_ids)
    started = time.perf_counter()
    outputs = llm.generate(
        [{"prompt_token_ids": list(ids)} for ids in asked.prompt_ids],
        sampling_params=SamplingParams(**asked.sampling(), logprobs=0),
        use_tqdm=False,
    )
    taken = time.perf_counter() - started
    done = [output.outputs[0] for output in outputs]
    if asked.on_progress is not None:
        asked.on_progress(len(done), sum(len(one.token_ids) for one in done))
    return (
        [list(one.token_ids) for one in done],
        [[at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)] for one in done],
        taken,
    )
