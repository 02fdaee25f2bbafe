"""Models and servers small enough for a test."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import torch

from small_models import make_llama

EOS = [0]
PROMPTS = [[5 + i, 20, 30 + i, 40, 50][: 2 + i % 4] for i in range(6)]
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 24, "logprobs": 0}


def make_model(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    """The two-layer Llama of the trainer's tests, with tied or untied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_llama(folder, seed=seed, hidden=64)  # vLLM's CPU attention knows heads of 32 and more
    if not tied:
        config = LlamaConfig.from_pretrained(folder)
        config.tie_word_embeddings = False
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def start(model: Path, folder: Path, *, max_model_length: int = 512, adapter_rank: int | None = None) -> Any:
    """A server of `model`, ready; whoever starts it stops it. adapter_rank: of adapters that it is given in the place of whole weights."""
    from tinyzero_trl.generation.server import Server, ServerSpec

    spec = ServerSpec(
        model=str(model),
        dtype="float32",
        max_model_length=max_model_length,
        is_on_cpu=True,
        weight_transfer="file",
        kv_cache_gib=0.125,
        adapter_rank=adapter_rank,
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    server = Server(spec, log=folder / "server.log", token_file=folder / "token")
    server.start()
    server.wait_until_healthy(600)
    return server


def client_of(
    server: Any, folder: Any = None, http_client: Any = None, *, sends_adapter: bool = False, **changes: Any
) -> Any:
    """http_client: by which it reaches the server; None: its own."""
    from tinyzero_trl.generation.client import Client
    from tinyzero_trl.generation.weights import WeightFolder

    own = None if folder else WeightFolder(None)
    settings = {"run": "test", "folder": folder or own, "seconds_per_batch": 600.0, **changes}
    http_client = http_client or server.http_client
    client = Client(http_client, base_url=http_client.url, **settings)
    if own:
        weakref.finalize(client, own.remove)
    client.sends_adapter = sends_adapter
    client.init_communicator()
    return client


def push(client: Any, model: torch.nn.Module, step: int, *, fails: bool = False) -> None:
    """Give the server the weights of `model`."""
    client.push(step)
    named = [(name, parameter.data) for name, parameter in model.named_parameters()]
    client.update_named_params(
        [(name, str(p.dtype).removeprefix("torch."), list(p.shape)) for name, p in named], iter(named)
    )
    client.reset_prefix_cache()
    assert (client.error is not None) == fails, client.error


def gap(model: Any, generated: dict[str, Any], temperature: float = 1.0) -> float:
    """The largest difference between the server's log-probabilities and those of one forward pass."""
    widest = 0.0
    for prompt, ids, logps in zip(
        generated["prompt_ids"], generated["completion_ids"], generated["logprobs"], strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        widest = max(widest, float((expected - torch.tensor(logps)[:, 0]).abs().max()))
    return widest


def shaken(model: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def rows(client: Any, first_seed: int) -> Any:
    from tinyzero_trl.generation.client import Rows

    client.rows = Rows(list(range(first_seed, first_seed + len(PROMPTS))), EOS)
    return client.generate(PROMPTS, **SAMPLING)
