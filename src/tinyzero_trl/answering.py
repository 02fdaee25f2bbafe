"""A model that answers prompts: tokenizer and lengths checked before weights are read, then a function that draws completions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl import hub
from tinyzero_trl.evaluation_plan import Plan
from tinyzero_trl.model_location import ModelLocation
from tinyzero_trl.task import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tinyzero_trl.generation.answers import Asked
    from tinyzero_trl.generation.sampler import Sampled
    from tinyzero_trl.stopping import StopStrings

Draw = Callable[..., list[dict[str, Any]]]
"""(*, prompt_ids, seeds, max_new_tokens, temperature, top_p, on_progress) -> text, length and `is_truncated` of each completion."""


def tokenizer_of(location: ModelLocation) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer, or else the model's. Raises: ValueError where there is none that can end a text."""
    from transformers import AutoTokenizer

    is_at_hub = not Path(location.path).is_dir()
    if is_at_hub:
        hub.reached()
    failures = []
    for place in filter(None, (location.adapter, location.path)):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError, KeyError, ImportError) as error:
            failures.append(f"{place}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
            continue
        # It warns of one prompt longer than the model; `room` refuses it and says which.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {place} has no end-of-text token, so that no response could end")
        return tokenizer
    if is_at_hub and not location.adapter:
        raise ValueError(f"--model_path {location.path}: {hub.missing_model(location.path)}")
    raise ValueError(f"--model_path {location.shown} has no tokenizer that can be loaded ({'; '.join(failures)})")


def prompt_ids_of(tokenizer: PreTrainedTokenizerBase, rows: list[Row], plan: Plan) -> list[list[int]]:
    """The prompts as training tokenises them."""
    from tinyzero_trl.checks import prompts_ids

    if not isinstance(rows[0]["prompt"], str) and not tokenizer.chat_template:
        raise ValueError(
            f"format {plan.format} is made of chat messages, and the tokenizer of {plan.location.shown} "
            "has no chat template; use --format base"
        )
    return prompts_ids(tokenizer, [row["prompt"] for row in rows])


def context_of(location: ModelLocation) -> int | None:
    """Tokens of a prompt with its response that the model takes, where it says. Raises: ValueError where it is no model."""
    from transformers import AutoConfig

    try:
        context = getattr(AutoConfig.from_pretrained(location.path), "max_position_embeddings", None)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model_path {location.path} is not a model: {str(error).splitlines()[0]}") from error
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
    batch_size: int | None = None,
    stop: Sequence[str] = (),
) -> Iterator[Draw]:
    """The model, loaded, as a function that draws completions.

    max_length: tokens of the longest prompt with its completion. stop: strings that end a completion.
    Raises: MemoryError where the device has too little memory for the batch; Failure where vLLM does not do its part.
    """
    from tinyzero_trl.generation.answers import Asked
    from tinyzero_trl.stopping import StopStrings

    stop_strings = StopStrings(stop, tokenizer) if stop else None
    with _sampler(engine, location, tokenizer, max_length, batch_size, stop_strings) as sampled_of:

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
    batch_size: int | None,
    stop: StopStrings | None,
) -> Iterator[Callable[[Asked], Sampled]]:
    if engine == "transformers":
        yield _transformers(location, tokenizer, batch_size, stop)
        return
    from transformers import AutoConfig, GenerationConfig

    from tinyzero_trl.generation import answers

    try:
        generation_config = GenerationConfig.from_pretrained(location.path)
    except OSError:  # a model without the file: its own config names the end, as it does for transformers
        generation_config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(location.path))
    ends = _ends(tokenizer, generation_config)
    with tempfile.TemporaryDirectory(prefix="tinyzero-merged-") as merged:
        if location.adapter:
            _model(location).save_pretrained(merged)
            tokenizer.save_pretrained(merged)
        spec = answers.Answering(merged if location.adapter else location.path, ends, max_length, batch_size, stop)
        with answers.opened(engine, spec) as sampled_of:
            yield sampled_of


def _transformers(
    location: ModelLocation, tokenizer: Any, batch_size: int | None, stop: StopStrings | None
) -> Callable[[Asked], Sampled]:
    import torch

    from tinyzero_trl.generation.sampler import sample

    model = _model(location)
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


def _model(location: ModelLocation) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from tinyzero_trl.engine import has_gpu

    logging.disable_progress_bar()
    device = "cuda" if has_gpu() else "cpu"
    # Half precision on a CPU without AMX is slower than single, and differs from what the tiny model trains in.
    dtype = "auto" if device == "cuda" else torch.float32
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(location.path, dtype=dtype)
        if location.adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, location.adapter).merge_and_unload()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--model_path {location.shown} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.to(device).eval()
