"""A model that answers prompts: tokenizer and lengths checked before weights are read, then a function that draws completions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tinyzero_trl.evaluation.plan import Plan
from tinyzero_trl.failures import ConfigError, first_line
from tinyzero_trl.models import EVALUATED, ModelLocation, adapters, inspection, tokens
from tinyzero_trl.task import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tinyzero_trl.generation.for_evaluation import Asked
    from tinyzero_trl.generation.sampler import Sampled
    from tinyzero_trl.models import StopStrings

Draw = Callable[..., list[dict[str, Any]]]
"""(*, prompt_ids, seeds, max_new_tokens, temperature, top_p, on_progress) -> text, length and `is_truncated` of each completion."""


def checked_tokenizer(location: ModelLocation) -> PreTrainedTokenizerBase:
    """The model's tokenizer, once nothing is found wrong with either. Raises: ConfigError."""
    config = inspection.config_of(location, typed=EVALUATED)
    tokenizer = tokens.tokenizer_of(location, typed=EVALUATED)
    inspection.check_vocabulary(tokenizer, config, subject=f"{EVALUATED}{location.shown}")
    inspection.empty_model(location, config, typed=EVALUATED)
    return tokenizer


def fitted(rows: list[Row], tokenizer: PreTrainedTokenizerBase, location: ModelLocation) -> list[Row]:
    """The rows with their prompts as the model's chat template takes them, as training does it."""
    prompts = tokens.fitted([row["prompt"] for row in rows], tokenizer, name=location.shown)
    return [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]


def prompt_ids_of(tokenizer: PreTrainedTokenizerBase, rows: list[Row], plan: Plan) -> list[list[int]]:
    """The prompts as training tokenises them. Raises: ConfigError where the chat template does not take them."""
    prompts = [row["prompt"] for row in rows]
    config = inspection.config_of(plan.location, typed=EVALUATED)
    tokens.check_prompts(prompts, tokenizer, config, name=plan.location.shown, format_name=plan.format)
    return tokens.prompts_ids(tokenizer, prompts)


def context_of(location: ModelLocation) -> int | None:
    """Tokens of a prompt with its response that the model takes, where it says. Raises: ConfigError where it is no model."""
    context = getattr(inspection.config_of(location, typed=EVALUATED), "max_position_embeddings", None)
    return None if context is None else int(context)


def room(plan: Plan, prompt_ids: list[list[int]]) -> int:
    """Tokens a response may have, so that with the longest prompt it fits the model."""
    context, longest = context_of(plan.location), max(map(len, prompt_ids))
    room = None if context is None else context - longest
    if room is not None and (room < 1 or (plan.max_new_tokens or 1) > room):
        place = f"problem {[*map(len, prompt_ids)].index(longest)} (from 0) of {plan.benchmark or plan.task.name}"
        raise ValueError(
            f"the longest prompt, {place}, has {longest} tokens and {plan.location.shown} takes {context}: "
            + (f"--max_new_tokens may be {room} at most, got {plan.max_new_tokens}" if room > 0 else "it does not fit")
        )
    return plan.max_new_tokens or min(plan.default_max_new_tokens, room or plan.default_max_new_tokens)


@contextmanager
def opened(
    engine: str,
    location: ModelLocation,
    tokenizer: Any,
    *,
    max_length: int,
    dtype: str = "auto",
    batch_size: int | None = None,
    stop: Sequence[str] = (),
) -> Iterator[Draw]:
    """The model, loaded, as a function that draws completions.

    max_length: tokens of the longest prompt with its completion. dtype: as in Plan; a CPU computes in float32. stop: strings that end a completion.
    Raises: MemoryError where the device has too little memory for the batch; Failure where vLLM does not do its part.
    """
    from tinyzero_trl.generation.for_evaluation import Asked
    from tinyzero_trl.models import StopStrings

    stop_strings = StopStrings(stop, tokenizer) if stop else None
    with _sampler(engine, location, tokenizer, max_length, dtype, batch_size, stop_strings) as sampled_of:

        def draw(**asked: Any) -> list[dict[str, Any]]:
            sampled = sampled_of(Asked(**asked))
            texts = tokenizer.batch_decode(sampled.completion_ids, skip_special_tokens=True)
            return [
                {"completion": text, "num_completion_tokens": len(ids), "is_truncated": is_truncated}
                for text, ids, is_truncated in zip(texts, sampled.completion_ids, sampled.is_truncated, strict=True)
            ]

        yield draw


@contextmanager
def _sampler(
    engine: str,
    location: ModelLocation,
    tokenizer: Any,
    max_length: int,
    dtype: str,
    batch_size: int | None,
    stop: StopStrings | None,
) -> Iterator[Callable[[Asked], Sampled]]:
    if engine == "transformers":
        yield _transformers(location, tokenizer, max_length, dtype, batch_size, stop)
        return
    from transformers import AutoConfig, GenerationConfig

    from tinyzero_trl.generation import for_evaluation

    try:
        generation_config = GenerationConfig.from_pretrained(location.path)
    except OSError:  # a model without the file: its own config names the end, as it does for transformers
        generation_config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(location.path))
    ends = _ends(tokenizer, generation_config)
    with tempfile.TemporaryDirectory(prefix="tinyzero-merged-") as merged:
        if location.adapter:
            # On the CPU: vLLM is about to measure the memory of the GPU, and float32 rounds nothing of the adapter away.
            _model(location, "float32", device="cpu").save_pretrained(merged)
            tokenizer.save_pretrained(merged)
        path = merged if location.adapter else location.path
        spec = for_evaluation.Answering(path, ends, max_length, _dtype_of_files(location.path, dtype), batch_size, stop)
        with for_evaluation.opened(engine, spec) as sampled_of:
            yield sampled_of


def _dtype_of_files(path: str, dtype: str) -> str:
    """The precision by name: vLLM's own `auto` halves float32, which transformers does not."""
    from transformers import AutoConfig

    if dtype != "auto":
        return dtype
    return "float32" if str(AutoConfig.from_pretrained(path).dtype) == "torch.float32" else "auto"


def _transformers(
    location: ModelLocation,
    tokenizer: Any,
    max_length: int,
    dtype: str,
    batch_size: int | None,
    stop: StopStrings | None,
) -> Callable[[Asked], Sampled]:
    import torch

    from tinyzero_trl.config import has_gpu
    from tinyzero_trl.generation.sampler import sample

    if has_gpu():
        model = _model(location, dtype, device="cuda")
        if batch_size is None:
            batch_size = rows_at_once(model.config, model.dtype.itemsize, max_length, torch.cuda.mem_get_info()[0])
    else:
        # Half precision on a CPU without AMX is slower than single, and differs from what the tiny model trains in.
        model = _model(location, "float32", device="cpu")
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = _ends(tokenizer, model.generation_config)

    def draw(asked: Asked) -> Sampled:
        try:
            return sample(
                model,
                asked.prompt_ids,
                max_new_tokens=asked.max_new_tokens,
                temperature=asked.temperature,
                top_p=asked.top_p,
                seeds=asked.seeds,
                eos_token_ids=ends,
                pad_token_id=pad_token_id,
                stop=stop,
                batch_size=batch_size,
                on_progress=asked.on_progress,
            )
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    return draw


def _ends(tokenizer: Any, generation_config: Any) -> list[int]:
    """Tokens that end a response: the tokenizer's, and those the model's generation config lists."""
    listed = generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None})


def rows_at_once(config: Any, itemsize: int, max_length: int, free_bytes: int) -> int:
    """The rows that transformers answers at once: as many as our sampler takes, or as their keys and values fit into a third of the memory.

    A third: while the cache doubles, old and new are there. config: of transformers. itemsize: bytes of a number of the cache.
    """
    from tinyzero_trl.generation.sampler import DEFAULT_BATCH_SIZE

    of_text = config.get_text_config()
    head = getattr(of_text, "head_dim", None) or of_text.hidden_size // of_text.num_attention_heads
    heads = getattr(of_text, "num_key_value_heads", None) or of_text.num_attention_heads
    of_row = 2 * of_text.num_hidden_layers * heads * head * itemsize * max_length
    return max(1, min(DEFAULT_BATCH_SIZE, free_bytes // 3 // of_row))


def _model(location: ModelLocation, dtype: str, *, device: str) -> Any:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = adapters.whole(location, dtype=dtype)
    except (OSError, ValueError) as error:  # of the hub, whose files are not checked before they come
        raise ConfigError(f"{EVALUATED}{location.shown} cannot be loaded: {first_line(error)}") from error
    return model.to(device).eval()
