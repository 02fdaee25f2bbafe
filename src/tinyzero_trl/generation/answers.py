"""One completion for each prompt from vLLM, for evaluation: the whole set goes in at once, and vLLM fills its batches from it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinyzero_trl.failures import ServerLost
from tinyzero_trl.generation.sampler import Sampled


def answers(
    engine: str,
    model: Path | str,
    prompt_ids: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    batch_size: int | None = None,
    seconds: float = 24 * 3600.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Sampled, float]:
    """What `sampler.sample` gives, and the seconds of it without loading, from a server of its own (`server`) or vLLM in this process (`colocate`).

    batch_size: sequences generated at once at most. on_progress: called with (prompts done, new tokens).
    Raises: ServerLost where the server does not start, or ends.
    """
    draw = {"server": _by_server, "colocate": _in_process}[engine]
    settings = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "max_tokens": max_new_tokens}
    length = max(map(len, prompt_ids)) + max_new_tokens
    ids, logprobs, taken = draw(
        str(model), prompt_ids, list(seeds), list(eos_token_ids), settings, length, batch_size, seconds, on_progress
    )
    ends = set(eos_token_ids)
    return Sampled(ids, logprobs, [not row or row[-1] not in ends for row in ids]), taken


Drawn = tuple[list[list[int]], list[list[float]], float]
"""Token ids and log-probabilities of each completion, and seconds."""


def _by_server(
    model: str,
    prompt_ids: Sequence[Sequence[int]],
    seeds: list[int],
    eos_token_ids: list[int],
    settings: dict[str, Any],
    length: int,
    batch_size: int | None,
    seconds: float,
    on_progress: Callable[[int, int], None] | None,
) -> Drawn:
    import torch

    from tinyzero_trl.generation.calls import ServerFault
    from tinyzero_trl.generation.client import Rows, checked_choice, request_bodies
    from tinyzero_trl.generation.server import Server, ServerSpec

    is_on_cpu = not torch.cuda.is_available()
    spec = ServerSpec(
        model=model,
        dtype="float32" if is_on_cpu else "auto",
        max_model_length=length,
        is_on_cpu=is_on_cpu,
        weight_transfer="file",
        max_num_seqs=batch_size,
    )

    def count(answer: Any) -> None:
        if on_progress is not None:
            on_progress(1, len(checked_choice(answer)["token_ids"]))

    with tempfile.TemporaryDirectory(prefix="tinyzero-serve-") as folder:
        log = Path(folder) / "server.log"
        server = Server(spec, log=log, token_file=Path(folder) / "token")
        try:
            server.start()
            server.wait_until_healthy(600.0)
            started = time.perf_counter()
            bodies = request_bodies(model, prompt_ids, Rows(seeds, eos_token_ids), **settings)
            given = server.calls.together("/v1/completions", bodies, seconds=seconds, on_answer=count)
            choices = [checked_choice(answer) for answer in given]
            taken = time.perf_counter() - started
        except ServerFault as fault:
            raise ServerLost(str(fault).replace(f" ({log})", "")) from fault
        finally:
            server.stop()
    logprobs = [choice["logprobs"]["token_logprobs"] for choice in choices]
    return [choice["token_ids"] for choice in choices], logprobs, taken


def _in_process(
    model: str,
    prompt_ids: Sequence[Sequence[int]],
    seeds: list[int],
    eos_token_ids: list[int],
    settings: dict[str, Any],
    length: int,
    batch_size: int | None,
    seconds: float,
    on_progress: Callable[[int, int], None] | None,
) -> Drawn:
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

    own: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30} if is_on_cpu else {}
    if batch_size is not None:
        own["max_num_seqs"] = batch_size
    llm = SeededLLM(
        model=model,
        dtype="float32" if is_on_cpu else "auto",
        max_model_len=length,
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        **own,
    )
    llm.rows = Rows(seeds, eos_token_ids)
    started = time.perf_counter()
    outputs = llm.generate(
        [{"prompt_token_ids": list(ids)} for ids in prompt_ids],
        sampling_params=SamplingParams(**settings, logprobs=0),
        use_tqdm=False,
    )
    taken = time.perf_counter() - started
    done = [output.outputs[0] for output in outputs]
    if on_progress is not None:
        on_progress(len(done), sum(len(one.token_ids) for one in done))
    return (
        [list(one.token_ids) for one in done],
        [[at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)] for one in done],
        taken,
    )
