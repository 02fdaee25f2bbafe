"""Completions by vLLM for evaluation: a request has all prompts, and vLLM fills its batches from them."""

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
class Request:
    """Prompts, and the distribution from which their completions are sampled."""

    prompt_ids: Sequence[Sequence[int]]
    seeds: Sequence[int]
    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    on_progress: Callable[[int, int], None] | None = None
    """Called with (prompts done, new tokens)."""
    seconds: float = 24 * 3600.0
    """Deadline of the whole request for a server, in seconds."""

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters by vLLM's names."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0, "max_tokens": self.max_new_tokens}


@dataclass(frozen=True)
class EngineSpec:
    """The model that vLLM loads, and its limits."""

    model: str
    eos_token_ids: Sequence[int]
    max_length: int
    """Tokens of the longest prompt and its completion together."""
    dtype: str = "auto"
    """Precision on a GPU, by vLLM's name."""
    batch_size: int | None = None
    """Most sequences generated at once; None is vLLM's default."""
    stop: StopStrings | None = None
    """Strings that end a completion."""


@contextmanager
def opened(engine: str, spec: EngineSpec) -> Iterator[Callable[[Request], Sampled]]:
    """A function with the contract of `sampler.sample`, on a vLLM server started here (`server`) or vLLM in this process (`colocate`).

    Raises: ServerLost if the server does not start, or ends early.
    """
    ends = set(spec.eos_token_ids)
    with {"server": _server, "colocate": _in_process}[engine](spec) as draw:

        def sampled(request: Request) -> Sampled:
            ids, logprobs = draw(request)
            return Sampled(ids, logprobs, [is_truncated(row, ends=ends, stop=spec.stop) for row in ids])

        yield sampled


@contextmanager
def _server(spec: EngineSpec) -> Iterator[Callable[[Request], Drawn]]:
    from tinyzero_trl.config import has_gpu
    from tinyzero_trl.generation.client import Rows, checked_choice, request_bodies
    from tinyzero_trl.generation.http_client import ServerError
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

    def draw(request: Request) -> Drawn:
        def count(answer: Any) -> None:
            if request.on_progress is not None:
                request.on_progress(1, len(checked_choice(answer)["token_ids"]))

        rows = Rows(request.seeds, spec.eos_token_ids, spec.stop.texts if spec.stop else ())
        bodies = request_bodies(spec.model, request.prompt_ids, rows, **request.sampling())
        given = server.http_client.post_all("/v1/completions", bodies, seconds=request.seconds, on_answer=count)
        choices = [checked_choice(answer) for answer in given]
        return [choice["token_ids"] for choice in choices], [choice["logprobs"]["token_logprobs"] for choice in choices]

    with tempfile.TemporaryDirectory(prefix="tinyzero-serve-") as folder:
        log = Path(folder) / "server.log"
        server = Server(of_server, log=log, token_file=Path(folder) / "token")
        try:
            server.start()
            server.wait_until_healthy(600.0)
            yield draw
        except ServerError as error:
            raise ServerLost(str(error).replace(f" ({log})", "")) from error
        finally:
            server.stop()


@contextmanager
def _in_process(spec: EngineSpec) -> Iterator[Callable[[Request], Drawn]]:
    import os

    from tinyzero_trl.config import has_gpu

    is_on_cpu = not has_gpu()
    if is_on_cpu:
        # vLLM reads these when it is imported: one process and no bound threads, as in colocate mode.
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

    def draw(request: Request) -> Drawn:
        llm.rows = Rows(request.seeds, spec.eos_token_ids, spec.stop.texts if spec.stop else ())
        outputs = llm.generate(
            [{"prompt_token_ids": list(ids)} for ids in request.prompt_ids],
            sampling_params=SamplingParams(**request.sampling(), logprobs=0),
            use_tqdm=False,
        )
        done = [output.outputs[0] for output in outputs]
        if request.on_progress is not None:
            request.on_progress(len(done), sum(len(one.token_ids) for one in done))
        return (
            [list(one.token_ids) for one in done],
            [[at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)] for one in done],
        )

    yield draw
