"""A plan's model answers prompts: tokenizer and lengths checked before weights are read, then completions."""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Any

from tinyzero_trl.evaluation_plan import Plan, Settings
from tinyzero_trl.model_location import ModelLocation
from tinyzero_trl.task import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tinyzero_trl.generation.sampler import Sampled

DEFAULT_MAX_NEW_TOKENS = 1024
"""Tokens of a response where neither a person nor a run says."""


def tokenizer_of(location: ModelLocation) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer, or else the model's. Raises: ValueError where there is none that can end a text."""
    from transformers import AutoTokenizer

    failures = []
    for place in filter(None, (location.adapter, location.path)):
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
        except (OSError, ValueError, KeyError, ImportError) as error:
            failures.append(f"{place}: {(str(error).strip() or type(error).__name__).splitlines()[0]}")
            continue
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {place} has no end-of-text token, so that no response could end")
        return tokenizer
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


def room(plan: Plan, longest: int) -> int:
    """Tokens a response may have, so that with the longest prompt it fits the model."""
    from transformers import AutoConfig

    try:
        context = getattr(AutoConfig.from_pretrained(plan.location.path), "max_position_embeddings", None)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--model_path {plan.location.path} is not a model: {str(error).splitlines()[0]}") from error
    room = None if context is None else int(context) - longest
    if room is not None and (room < 1 or (plan.max_new_tokens or 1) > room):
        raise ValueError(
            f"the longest prompt has {longest} tokens and {plan.location.shown} takes {context}: "
            + (f"--max_new_tokens may be {room} at most, got {plan.max_new_tokens}" if room > 0 else "it does not fit")
        )
    return plan.max_new_tokens or min(DEFAULT_MAX_NEW_TOKENS, room or DEFAULT_MAX_NEW_TOKENS)


def answer(
    plan: Plan, settings: Settings, tokenizer: Any, prompt_ids: list[list[int]], max_new_tokens: int, console: Any
) -> tuple[list[dict[str, Any]], float]:
    """k completions of each prompt, and the seconds they took.

    Raises: MemoryError where the device has too little memory for the batch; Failure where vLLM does not do its part.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tinyzero_trl.draws import seed_of

    rows = [ids for ids in prompt_ids for _ in range(settings.k)]
    seeds = [seed_of(settings.seed, problem, i) for problem in range(len(prompt_ids)) for i in range(settings.k)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"Answering with {plan.location.shown}", total=len(rows))
        drawn = {
            "seeds": seeds,
            "max_new_tokens": max_new_tokens,
            "temperature": plan.temperature,
            "batch_size": settings.batch_size,
            "on_progress": lambda done, total: progress.update(bar, advance=done),
        }
        if settings.engine == "transformers":
            sampled, seconds = _by_transformers(plan.location, tokenizer, rows, drawn)
        else:
            sampled, seconds = _by_vllm(settings.engine, plan.location, tokenizer, rows, drawn)
    texts = tokenizer.batch_decode(sampled.completion_ids, skip_special_tokens=True)
    completions = [
        {"completion": text, "num_completion_tokens": len(ids), "is_truncated": is_truncated}
        for text, ids, is_truncated in zip(texts, sampled.completion_ids, sampled.is_truncated, strict=True)
    ]
    return completions, seconds


def _by_transformers(
    location: ModelLocation, tokenizer: Any, rows: list[list[int]], drawn: dict[str, Any]
) -> tuple[Sampled, float]:
    import torch

    from tinyzero_trl.generation.sampler import sample

    model = _model(location)
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    started = time.perf_counter()
    try:
        sampled = sample(
            model, rows, eos_token_ids=_ends(tokenizer, model.generation_config), pad_token_id=pad_token_id, **drawn
        )
        return sampled, time.perf_counter() - started
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error


def _by_vllm(
    engine: str, location: ModelLocation, tokenizer: Any, rows: list[list[int]], drawn: dict[str, Any]
) -> tuple[Sampled, float]:
    from transformers import AutoConfig, GenerationConfig

    from tinyzero_trl.generation.answers import answers

    try:
        generation_config = GenerationConfig.from_pretrained(location.path)
    except OSError:  # a model without the file: its own config names the end, as it does for transformers
        generation_config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(location.path))
    eos_token_ids = _ends(tokenizer, generation_config)
    if not location.adapter:
        return answers(engine, location.path, rows, eos_token_ids=eos_token_ids, **drawn)
    with tempfile.TemporaryDirectory(prefix="tinyzero-merged-") as merged:
        _model(location).save_pretrained(merged)
        tokenizer.save_pretrained(merged)
        return answers(engine, merged, rows, eos_token_ids=eos_token_ids, **drawn)


def _ends(tokenizer: Any, generation_config: Any) -> list[int]:
    """Tokens that end a response: the tokenizer's, and those the model's generation config lists."""
    listed = generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None})


def _model(location: ModelLocation) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
