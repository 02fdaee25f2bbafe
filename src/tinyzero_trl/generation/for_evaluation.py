"""Completions from vLLM, for evaluation: what is asked at once goes in at once, and vLLM fills its batches from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl.failures import ServerLost
from tinyzero_trl.generation.sampler import Sampled
from tinyzero_trl.models import StopStrings, is_truncated

Drawn = tuple[list[list[int]], list[list[float]]]
"""Token ids and log-probabilities of each completion."""


@dataclass(frozen=True)
class Asked:
    """What is to be answered, and how."""

    prompt_ids: Sequence[Sequence[int]]
    seeds: Sequence[int]
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    on_progress: Callable[[int, int], None] | None = None
    """Called with (prompts done, new tokens)."""
    seconds: float = 24 * 3600.0
    """For all of it, from a server."""

    def sampling(self) -> dict[str, Any]:
        """The distribution, by vLLM's names."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0, "max_tokens": self.max_new_tokens}


@dataclass(frozen=True)
class Answering:
    """What vLLM must know before it is asked."""

    model: str
    eos_token_ids: Sequence[int]
    max_length: int
    """Tokens of the longest prompt with its completion."""
    dtype: str = "auto"
    """Precision on a GPU, by vLLM's name."""
    batch_size: int | None = None
    """Sequences generated at once at most."""
    stop: StopStrings | None = None
    """Strings that end a completion."""


@contextmanager
def opened(engine: str, spec: Answering) -> Iterator[Callable[[Asked], Sampled]]:
    """A function that gives what `sampler.sample` does, from a server of its own (`server`) or vLLM in this process (`colocate`).

    Raises: ServerLost where the server does not start, or ends.
    """
    ends = set(spec.eos_token_ids)
    with {"server": _server, "colocate": _in_process}[engine](spec) as draw:

        def sampled(asked: Asked) -> Sampled:
            ids, logprobs = draw(asked)
            return Sampled(ids, logprobs, [is_truncated(row, ends=ends, stop=spec.stop) for row in ids])

        yield sampled


@contextmanager
def _server(spec: Answering) -> Iterator[Callable[[Asked], Drawn]]:
    from tinyzero_trl.config import has_gpu
    from tinyzero_trl.generation.calls import ServerFault
    from tinyzero_trl.generation.client import Rows, checked_choice, request_bodies
    from tinyzero_trl.generation.server import Server, ServerSpec

    is_on_cpu = not has_gpu()
    of_server = ServerSpec(
        model=spec.model,
        dtype="float32" if is_on_cpu else spec.dtype,
        max_model_length=spec.max_length,
        is_on_cpu=is_on_cpu,
        weight_transfer="file",
        max_num_seqs=spec.batch_size,
    )

    def draw(asked: Asked) -> Drawn:
        def count(answer: Any) -> None:
            if asked.on_progress is not None:
                asked.on_progress(1, len(checked_choice(answer)["token_ids"]))

        rows = Rows(asked.seeds, spec.eos_token_ids, spec.stop.texts if spec.stop else ())
        bodies = request_bodies(spec.model, asked.prompt_ids, rows, **asked.sampling())
        given = server.calls.together("/v1/completions", bodies, seconds=asked.seconds, on_answer=count)
        choices = [checked_choice(answer) for answer in given]
        return [choice["token_ids"] for choice in choices], [choice["logprobs"]["token_logprobs"] for choice in choices]

    with tempfile.TemporaryDirectory(prefix="tinyzero-serve-") as folder:
        log = Path(folder) / "server.log"
        server = Server(of_server, log=log, token_file=Path(folder) / "token")
        try:
            server.start()
            server.wait_until_healthy(600.0)
            yield draw
        except ServerFault as fault:
            raise ServerLost(str(fault).replace(f" ({log})", "")) from fault
        finally:
            server.stop()


@contextmanager
def _in_process(spec: Answering) -> Iterator[Callable[[Asked], Drawn]]:
    import os

    from tinyzero_trl.config import has_gpu

    is_on_cpu = not has_gpu()
    if is_on_cpu:
        # Read as vLLM is imported: one process and no threads bound, as in colocate mode.
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    from vllm import SamplingParams

    from tinyzero_trl.generation.client import Rows
    from tinyzero_trl.generation.colocated import SeededLLM
    from tinyzero_trl.generation.server import ON_CPU

    own: dict[str, Any] = {**ON_CPU, "kv_cache_memory_bytes": 2**30} if is_on_cpu else {}
    if spec.batch_size is not None:
        own["max_num_seqs"] = spec.batch_size
    llm = SeededLLM(
        model=spec.model,
        dtype="float32" if is_on_cpu else spec.dtype,
        max_model_len=spec.max_length,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        **own,
    )

    def draw(asked: Asked) -> Drawn:
        llm.rows = Rows(asked.seeds, spec.eos_token_ids, spec.stop.texts if spec.stop else ())
        outputs = llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in asked.prompt_ids],
            sampling_params=SamplingParams(**asked.sampling(), logprobs=0),
            use_tqdm=False,
        )
        done = [output.outputs[0] for output in outputs]
        if asked.on_progress is not None:
            asked.on_progress(len(done), sum(len(one.token_ids) for one in done))
        return (
            [list(one.token_ids) for one in done],
            [[at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)] for one in done],
        )

    yield draw
