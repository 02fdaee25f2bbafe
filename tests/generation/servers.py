"""Models and servers small enough for a test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from small_models import make_llama


def make_model(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    """The two-layer Llama of the trainer's tests, with tied or untied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    make_llama(folder, seed=seed, hidden=64)  # vLLM's CPU attention knows heads of 32 and more
    if not tied:
        config = LlamaConfig.from_pretrained(folder)
        config.tie_word_embeddings = False
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def start(model: Path, folder: Path) -> Any:
    """A server of `model`, ready; whoever starts it stops it."""
    from tinyzero_trl.generation.server import Server, ServerSpec

    spec = ServerSpec(
        model=str(model),
        dtype="float32",
        max_model_length=512,
        is_on_cpu=True,
        weight_transfer="file",
        kv_cache_gib=0.125,
    )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    server = Server(spec, log=folder / "server.log", token_file=folder / "token")
    server.start()
    server.wait_until_healthy(180)
    return server


def client_of(server: Any, folder: Any = None, **changes: Any) -> Any:
    from tinyzero_trl.generation.client import Client
    from tinyzero_trl.generation.weights import WeightFolder

    settings = {"run": "test", "folder": folder or WeightFolder(None), "seconds_per_batch": 60.0, **changes}
    client = Client(server.calls, base_url=server.url, **settings)
    client.init_communicator()
    return client
