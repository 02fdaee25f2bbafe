"""Writes the completions, in training and in evaluation: our own sampler, vLLM servers, or vLLM inside the training process.

    prompts ─┬─> sampler.py (transformers) ────────────────────────────────────────────────┬─> completions with log-probabilities
             ├─> server_generation.py ─> client.py ─> http_client.py / server_pool.py ─────┤
             │        │   weights.py ─ files ──> transfer.py ┐                             │
             │        └─> broadcast.py ─ NCCL ───────────────┴─> vLLM server (server.py) ──┤
             └─> colocated.py: vLLM in this process; weights go by memory ─────────────────┘

`engines.engine` reads the recipe and makes the generation that the trainer hands to TRL; `for_evaluation.opened` does it without a
trainer. Our sampler draws tokens, and `decoding.py` computes the logits it draws them from. The weights that a server gets have a
version, and completions count only if the server has this version before and after them. A server runs below `supervisor.py`, a
process that ends it when the trainer ends, for whatever reason; every request carries the token of `authentication.py`. `plugin.py`
and `transfer.py` run inside vLLM. An error that a server causes is a ServerError: the run restarts the server or waits for it, and
after generation.max_failures of them ends with ServerLost.

A name is imported from its file when it is first used: some files load torch, TRL or vLLM, and the supervisor must load none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyzero_trl.generation.decoding import bytes_of_a_token
    from tinyzero_trl.generation.engines import engine, rollout_function
    from tinyzero_trl.generation.for_evaluation import EngineSpec, Request, opened
    from tinyzero_trl.generation.sampler import DEFAULT_BATCH_SIZE, Sampled, sample
    from tinyzero_trl.generation.transformers_rollout import transformers_rollout

__all__ = [
    "DEFAULT_BATCH_SIZE",
    "EngineSpec",
    "Request",
    "Sampled",
    "bytes_of_a_token",
    "engine",
    "opened",
    "rollout_function",
    "sample",
    "transformers_rollout",
]
_NAMES = {
    "decoding": "bytes_of_a_token",
    "engines": "engine rollout_function",
    "for_evaluation": "EngineSpec Request opened",
    "sampler": "DEFAULT_BATCH_SIZE Sampled sample",
    "transformers_rollout": "transformers_rollout",
}
"""Names by the file they are imported from; the imports above are the same, for type checkers and editors."""
_FILE = {name: file for file, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _FILE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE[name]}"), name)
