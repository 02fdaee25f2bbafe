"""Makes the training text of a tiny base model: problems of several tasks with synthetic thoughts, in stages, in batches of like length."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.failures import ConfigError, nearest
from tinyzero_trl.models import CheckedModel, adapters, matching_ids
from tinyzero_trl.pretraining import countdown_traces, countdown_trees, math_traces, multiplication_traces
from tinyzero_trl.pretraining.scratch import NUMBERS, fixed_sentences, new_llama, train_tokenizer
from tinyzero_trl.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRACES: dict[str, dict[str, Any]] = {
    "countdown": {"expressions": countdown_traces, "trees": countdown_trees},
    "math": {"steps": math_traces},
    "multiplication": {"parts": multiplication_traces},
}
"""By task and kind of thought, the module whose `draw` picks problems and whose `traces` writes thoughts; the first kind is the default."""

SCRATCH = (
    *("vocab_size", "numbers", "max_length", "hidden_size", "num_hidden_layers", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""Keys of `scratch`; a shape that Llama's configuration does not know would be taken and not used."""
TOKENIZER_TEXTS = 20_000
"""Most documents that train the tokenizer; it has few merges, which more text would not change."""
DEAL_BATCHES = 64
"""Batches whose examples are sorted by length together: enough for batches of like length, few enough for varied batches."""


@dataclass(frozen=True)
class Text:
    """One document: the given text, and the text to learn."""

    prompt: str
    completion: str


def problems(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Training rows by task; each spec holds keyword arguments of the task's `load`."""
    return {task: TASKS[task].load(split="train", **spec).to_list() for task, spec in specs.items()}


def stages_of(cfg: Any) -> list[tuple[int, dict[str, dict[str, Any]]]]:
    """Seed and shares of each stage of a recipe, in order. Raises: ConfigError that names the stage and the key, also of the model's start."""
    _check_start(cfg)
    stages: Any = OmegaConf.to_container(cfg.stages)
    checked = []
    if not stages:
        raise ConfigError("stages is empty; a stage has a seed and, by task, num_rows")
    for task in cfg.data:
        if task not in TRACES:
            raise ConfigError(f"data: there is no task {task!r} with traces; there is {', '.join(TRACES)}{nearest(str(task), TRACES)}")  # fmt: skip
        if not isinstance(cfg.data[task], DictConfig):
            raise ConfigError(f"data.{task} holds the arguments of its load, key: value; got {cfg.data[task]!r}")
        if str(cfg.format) not in TASKS[task].formats:
            raise ConfigError(f"format: task {task} has no {cfg.format!r}; it has {', '.join(TASKS[task].formats)}{nearest(str(cfg.format), TASKS[task].formats)}")  # fmt: skip
    for number, spec in enumerate(stages, start=1):
        if not isinstance(spec, dict):
            raise ConfigError(f"stages: stage {number} must have a seed and, by task, num_rows; got {spec!r}")
        shares = {task: share for task, share in spec.items() if task != "seed"}
        if type(spec.get("seed")) is not int:
            raise ConfigError(f"stages: stage {number} needs seed, an integer")
        for task, share in shares.items():
            if task not in TRACES or task not in cfg.data:
                raise ConfigError(
                    f"stages: stage {number} draws from {task!r}; there is {', '.join(sorted(set(TRACES) & set(cfg.data)))}"
                )
            if not isinstance(share, dict):
                raise ConfigError(f"stages: stage {number}: {task} must have num_rows, got {share!r}")
            if share.get("thoughts", _default(task)) not in TRACES[task]:
                raise ConfigError(f"stages: stage {number}: {task}: thoughts must be one of {', '.join(TRACES[task])}, got {share['thoughts']!r}")  # fmt: skip
            habits = _writer(task, share).HABITS
            if set(share) - {"num_rows", "thoughts", *habits} or type(share.get("num_rows")) is not int:
                raise ConfigError(
                    f"stages: stage {number}: {task} takes num_rows (required), thoughts and {', '.join(habits)}, "
                    f"got {', '.join(sorted(share))}"
                )
            if type(share.get("checks_within", -1)) is not int:
                raise ConfigError(
                    f"stages: stage {number}: {task}: checks_within must be an integer, -1 for never, got {share['checks_within']!r}"
                )
        hand = cfg.trainer.per_device_train_batch_size * DEAL_BATCHES
        if (num_rows := sum(share["num_rows"] for share in shares.values())) < hand:
            raise ConfigError(
                f"stages: stage {number} has {num_rows} rows, and rows are dealt {hand} at a time ({DEAL_BATCHES} batches of "
                "trainer.per_device_train_batch_size): raise num_rows, or lower the batch"
            )
        checked.append((spec["seed"], shares))
    return checked


def stage(
    rows_by_task: Mapping[str, Sequence[dict[str, Any]]],
    shares: Mapping[str, Mapping[str, Any]],
    *,
    format_name: str,
    seed: int,
) -> list[Text]:
    """The documents of one stage, shuffled: `num_rows` of each task, written with the habits in its share."""
    rng = random.Random(seed + 1)
    drawn = {
        task: _writer(task, share).draw(rows_by_task[task], num_rows=share["num_rows"], rng=rng)
        for task, share in shares.items()
    }
    texts: list[Text] = []
    for offset, (task, rows) in enumerate(drawn.items(), start=2):
        habits = {name: value for name, value in shares[task].items() if name not in ("num_rows", "thoughts")}
        thoughts = _writer(task, shares[task]).traces(rows, seed=seed + offset, **habits)
        word = TASKS[task].formats[format_name]
        texts += [Text(word(row)["prompt"], thought) for row, thought in zip(rows, thoughts, strict=True)]
    random.Random(seed + offset + 1).shuffle(texts)
    return texts


def start(cfg: Any, texts: Sequence[Text], begun: CheckedModel | None) -> tuple[Any, Any]:
    """The model and tokenizer with which training starts.

    begun: the model of `model.model_name_or_path`; None makes both new for `texts`, in the shape of `scratch`.
    """
    if begun is not None:
        model = adapters.whole(begun.location, dtype="float32")
        if cfg.new_tokens:
            _add_tokens(model, begun.tokenizer, cfg.new_tokens, seed=cfg.trainer.seed)
        if cfg.sharpen != 1:
            _sharpen(model, cfg.sharpen, name=str(cfg.model.model_name_or_path))
        return model, begun.tokenizer
    shape = dict(cfg.scratch)
    kind = {"vocab_size": shape.pop("vocab_size"), "numbers": shape.pop("numbers", "digits")}
    tokenizer = tokenizer_for(texts, max_length=shape["max_length"], **kind)
    model = new_llama(tokenizer, seed=cfg.trainer.seed, **shape)
    _sharpen(model, cfg.sharpen, name="scratch")
    return model, tokenizer


def _check_start(cfg: Any) -> None:
    """Raises: ConfigError, for a value that the start of training could not use."""
    for pair in cfg.new_tokens:
        if len(pair) != 2 or not all(pair):
            raise ConfigError(
                f"new_tokens: a pair is the new text and a token of the model that it is like; got {list(pair)}"
            )
    texts = [text for text, _ in cfg.new_tokens]
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise ConfigError(f"new_tokens: {twice!r} is named twice")
    if cfg.new_tokens and not cfg.model.model_name_or_path:
        raise ConfigError(
            "new_tokens are for a model that is named by model.model_name_or_path; a new one takes its tokens from the stages"
        )
    if not 0 < cfg.sharpen < 100:
        raise ConfigError(f"sharpen must be above 0 and below 100, got {cfg.sharpen}")
    for key in cfg.scratch:
        if key not in SCRATCH:
            raise ConfigError(
                f"there is no key scratch.{key}; there is {', '.join(SCRATCH)}{nearest(str(key), SCRATCH)}"
            )
    if (numbers := cfg.scratch.get("numbers", "digits")) not in NUMBERS:
        raise ConfigError(f"scratch.numbers must be one of {', '.join(NUMBERS)}, got {numbers!r}")


def _add_tokens(model: Any, tokenizer: Any, pairs: Sequence[Sequence[str]], *, seed: int) -> None:
    """Make the first text of each pair a token, with the embedding of the second and half as much noise as embeddings differ.

    transformers would place all new ones at the mean of the others, from where a small learning rate takes long to part them.
    """
    import torch
    from tokenizers import AddedToken

    like = [matching_ids(tokenizer, re.escape(known))[0] for _, known in pairs]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, _ in pairs])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            noise = torch.randn(len(pairs), weight.shape[1], generator=torch.Generator().manual_seed(seed))
            weight[-len(pairs) :] = weight[like] + noise * weight[: -len(pairs)].std(dim=0) / 2


def _sharpen(model: Any, factor: float, *, name: str) -> None:
    """Multiply all logits by `factor`. Raises: ConfigError where the model has no RMSNorm before its head."""
    import torch

    norm = getattr(model.get_decoder(), "norm", None)
    if norm is None or getattr(norm, "bias", None) is not None:
        raise ConfigError(f"sharpen={factor} needs a model with an RMSNorm before its head; {name} has none")
    with torch.no_grad():
        norm.weight.mul_(factor)


def tokenizer_for(
    texts: Sequence[Text], *, vocab_size: int, max_length: int, numbers: str = "digits"
) -> PreTrainedTokenizerFast:
    """A tokenizer for these documents: each sentence that their prompts share is one token, and thoughts are merged by BPE."""
    openings = {text.prompt[: _first_digit(text.prompt)] for text in texts[:2000]}
    sentences: dict[str, None] = {}
    for opening in sorted(openings):  # one opening a task: prompts of different tasks share little
        sentences |= dict.fromkeys(fixed_sentences([t.prompt for t in texts[:2000] if t.prompt.startswith(opening)]))
    return train_tokenizer(
        [text.completion for text in texts[:TOKENIZER_TEXTS]],
        sentences=list(sentences),
        vocab_size=vocab_size,
        max_length=max_length,
        numbers=numbers,
    )


def examples(texts: Sequence[Text], tokenizer: Any) -> list[dict[str, list[int]]]:
    """Token ids and labels; the loss counts only the completion and its end of text."""
    prompts = tokenizer([text.prompt for text in texts], return_attention_mask=False)["input_ids"]
    completions = tokenizer([text.completion + tokenizer.eos_token for text in texts], return_attention_mask=False)
    return [
        {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
        for prompt, completion in zip(prompts, completions["input_ids"], strict=True)
    ]


def dealt(rows: Sequence[dict[str, list[int]]], *, batch_size: int, seed: int) -> Iterable[dict[str, list[int]]]:
    """The rows in batches of like length, with batches in random order; rows beyond the last full deal are left out."""
    rng = random.Random(seed)
    hand = batch_size * DEAL_BATCHES
    for start in range(0, len(rows) - hand + 1, hand):
        ordered = sorted(rows[start : start + hand], key=lambda row: len(row["input_ids"]))
        batches = [ordered[at : at + batch_size] for at in range(0, hand, batch_size)]
        rng.shuffle(batches)
        for batch in batches:
            yield from batch


def _default(task: str) -> str:
    return next(iter(TRACES[task]))


def _writer(task: str, share: Mapping[str, Any]) -> Any:
    """The module that writes the thoughts of a share."""
    return TRACES[task][share.get("thoughts", _default(task))]


def _first_digit(text: str) -> int:
    return next(index for index, character in enumerate(text) if character.isdigit())
