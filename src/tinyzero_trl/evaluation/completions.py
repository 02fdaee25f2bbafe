"""Completions of a model for evaluation: checks before weights are read, then one function for every engine.

`checked_model` reads small files only; `opened` loads the model, or starts vLLM with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyzero_trl.evaluation.plan import Plan
from tinyzero_trl.failures import ConfigError, first_line
from tinyzero_trl.models import EVALUATED, CheckedModel, ModelLocation, StopStrings, adapters, inspection, tokens
from tinyzero_trl.task import Row

if TYPE_CHECKING:
    from tinyzero_trl.generation import Request, Sampled

Draw = Callable[..., list[dict[str, Any]]]
"""(*, prompt_ids, seeds, max_new_tokens, temperature, top_p, on_progress) -> text, length and `is_truncated` of each completion."""


@dataclass(frozen=True)
class Loading:
    """A checked model, and the settings to load it with."""

    model: CheckedModel
    max_length: int
    """Tokens of the longest prompt with its completion."""
    dtype: str = "auto"
    """Precision on a GPU, as in Plan; a CPU computes in float32."""
    batch_size: int | None = None
    """Largest number of sequences generated at once; None is the engine's choice."""
    stop: Sequence[str] = ()
    """Strings that end a completion."""

    @property
    def stop_strings(self) -> StopStrings | None:
        """The stop strings as the model's tokenizer spells them; None without any."""
        return StopStrings(self.stop, self.model.tokenizer) if self.stop else None


def checked_model(location: ModelLocation) -> CheckedModel:
    """The model's config and tokenizer, after all checks that need no weights. Raises: ConfigError."""
    config = inspection.config_of(location, typed=EVALUATED)
    tokenizer = tokens.tokenizer_of(location, typed=EVALUATED, config=config)
    inspection.empty_model(location, config, typed=EVALUATED)
    return CheckedModel(location, config, tokenizer)


def fitted_rows(rows: list[Row], model: CheckedModel) -> list[Row]:
    """The rows with their prompts as the model's chat template takes them, as in training."""
    prompts = tokens.fitted([row["prompt"] for row in rows], model.tokenizer, name=model.location.shown)
    return [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]


def prompt_ids_of(model: CheckedModel, rows: list[Row], *, format_name: str) -> list[list[int]]:
    """The prompts as training tokenises them. Raises: ConfigError if the chat template refuses them."""
    prompts = [row["prompt"] for row in rows]
    tokens.check_prompts(prompts, model.tokenizer, model.config, name=model.location.shown, format_name=format_name)
    return tokens.prompts_ids(model.tokenizer, prompts)


def context_of(model: CheckedModel) -> int | None:
    """Most tokens of a prompt with its response; None if the model's config names no limit."""
    context = getattr(model.config, "max_position_embeddings", None)
    return None if context is None else int(context)


def room(plan: Plan, model: CheckedModel, prompt_ids: list[list[int]]) -> int:
    """Tokens a response may have, so that the longest prompt and its response fit the model."""
    context, longest = context_of(model), max(map(len, prompt_ids))
    room = None if context is None else context - longest
    if room is not None and (room < 1 or (plan.max_new_tokens or 1) > room):
        place = f"problem {[*map(len, prompt_ids)].index(longest)} (from 0) of {plan.benchmark or plan.task.name}"
        raise ValueError(
            f"the longest prompt, {place}, has {longest} tokens and {plan.location.shown} takes {context}: "
            + (f"--max_new_tokens may be {room} at most, got {plan.max_new_tokens}" if room > 0 else "it does not fit")
        )
    return plan.max_new_tokens or min(plan.default_max_new_tokens, room or plan.default_max_new_tokens)


@contextmanager
def opened(engine: str, loading: Loading) -> Iterator[Draw]:
    """The model, loaded, as a function that draws completions.

    Raises: MemoryError if the device has too little memory for the batch; Failure if vLLM fails.
    """
    from tinyzero_trl.generation import Request

    tokenizer = loading.model.tokenizer
    with _transformers(loading) if engine == "transformers" else _vllm(engine, loading) as sampled_of:

        def draw(**request: Any) -> list[dict[str, Any]]:
            sampled = sampled_of(Request(**request))
            texts = tokenizer.batch_decode(sampled.completion_ids, skip_special_tokens=True)
            return [
                {"completion": text, "num_completion_tokens": len(ids), "is_truncated": is_truncated}
                for text, ids, is_truncated in zip(texts, sampled.completion_ids, sampled.is_truncated, strict=True)
            ]

        yield draw


@contextmanager
def _vllm(engine: str, loading: Loading) -> Iterator[Callable[[Request], Sampled]]:
    from transformers import AutoConfig, GenerationConfig

    from tinyzero_trl.generation import for_evaluation

    location, tokenizer = loading.model.location, loading.model.tokenizer
    try:
        generation_config = GenerationConfig.from_pretrained(location.path)
    except OSError:  # without the file, the model's own config names the end token, as it does for transformers
        generation_config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(location.path))
    with tempfile.TemporaryDirectory(prefix="tinyzero-merged-") as merged:
        if location.adapter:
            # On the CPU: vLLM is about to measure the GPU's free memory. In float32: nothing of the adapter is rounded away.
            _model(location, "float32", device="cpu").save_pretrained(merged)
            tokenizer.save_pretrained(merged)
        spec = for_evaluation.EngineSpec(
            model=merged if location.adapter else location.path,
            eos_token_ids=_ends(tokenizer, generation_config),
            max_length=loading.max_length,
            dtype=_dtype_of_files(location.path, loading.dtype),
            batch_size=loading.batch_size,
            stop=loading.stop_strings,
        )
        with for_evaluation.opened(engine, spec) as sampled_of:
            yield sampled_of


def _dtype_of_files(path: str, dtype: str) -> str:
    """The precision by name. vLLM's own `auto` would halve float32, which transformers does not do."""
    from transformers import AutoConfig

    if dtype != "auto":
        return dtype
    return "float32" if str(AutoConfig.from_pretrained(path).dtype) == "torch.float32" else "auto"


@contextmanager
def _transformers(loading: Loading) -> Iterator[Callable[[Request], Sampled]]:
    import torch

    from tinyzero_trl.config import has_gpu
    from tinyzero_trl.generation import sample

    tokenizer, batch_size = loading.model.tokenizer, loading.batch_size
    if has_gpu():
        model = _model(loading.model.location, loading.dtype, device="cuda")
        if batch_size is None:
            free_bytes = torch.cuda.mem_get_info()[0]
            batch_size = rows_at_once(model.config, model.dtype.itemsize, loading.max_length, free_bytes)
    else:
        # Half precision on a CPU without AMX is slower than single, and differs from the precision that the tiny model trains in.
        model = _model(loading.model.location, "float32", device="cpu")
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends, stop = _ends(tokenizer, model.generation_config), loading.stop_strings

    def draw(request: Request) -> Sampled:
        try:
            return sample(
                model,
                request.prompt_ids,
                max_new_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seeds=request.seeds,
                eos_token_ids=ends,
                pad_token_id=pad_token_id,
                stop=stop,
                batch_size=batch_size,
                on_progress=request.on_progress,
            )
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    yield draw


def _ends(tokenizer: Any, generation_config: Any) -> list[int]:
    """Tokens that end a response: the tokenizer's end token, and those in the model's generation config."""
    listed = generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None})


def rows_at_once(config: Any, itemsize: int, max_length: int, free_bytes: int) -> int:
    """Rows that transformers generates at once: the sampler's default, or as many as have their keys and values in a third of the memory.

    A third, because the cache exists twice while it doubles, and as rows that left keep their memory for a while. config: the model's.
    itemsize: bytes of one number in the cache.
    """
    from tinyzero_trl.generation import DEFAULT_BATCH_SIZE, bytes_of_a_token

    return max(1, min(DEFAULT_BATCH_SIZE, free_bytes // 3 // (bytes_of_a_token(config, itemsize) * max_length)))


def _model(location: ModelLocation, dtype: str, *, device: str) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = adapters.whole(location, dtype=dtype)
    except (OSError, ValueError) as error:  # a model of the hub: its files are not checked before they are fetched
        raise ConfigError(f"{EVALUATED}{location.shown} cannot be loaded: {first_line(error)}") from error
    return model.to(device).eval()
