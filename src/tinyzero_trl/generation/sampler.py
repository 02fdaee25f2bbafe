"""Batched sampling from a causal language model, in which finished rows cost nothing.

`model.generate` computes every row of a batch until the longest has ended, and copies the whole key-value cache at every token. Thoughts
differ in length tenfold, so here a finished row leaves the batch, and the cache grows in place.
Axes: see tinyzero_trl.algorithms; A = rows that are still in the batch, L = prompt tokens and those sampled so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tinyzero_trl.failures import NumericFailure
from tinyzero_trl.models import StopStrings, is_truncated
from tinyzero_trl.seeding import tokens_at, uniforms

COMPACT_ABOVE = 0.125
"""Share of finished rows above which they are removed from the batch: removing them copies the cache."""
CACHE_GROWTH = 64
"""Fewest tokens by which a full cache grows. It usually doubles, up to the longest completion: many small steps would fragment a GPU's memory."""
DEFAULT_BATCH_SIZE = 256
"""Rows sampled together by default."""


@dataclass(frozen=True)
class Sampled:
    """Completions in the order of their prompts."""

    completion_ids: list[list[int]]
    """Token ids, with the end-of-sequence token if there was one."""
    logprobs: list[list[float]]
    """Log-probability of each token under the distribution it was drawn from (after temperature)."""
    is_truncated: list[bool]
    """True if `max_new_tokens` was reached before an end-of-sequence token or a stop string."""


class GrowingLayer(DynamicLayer):
    """A cache layer that writes new keys and values in place: one token costs one token, not a copy of the past."""

    def __init__(self, *args: Any, max_tokens: int, **kwargs: Any):
        """max_tokens: largest number of tokens it holds."""
        super().__init__(*args, **kwargs)
        self._max_tokens = max_tokens

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._keys, self._values = key_states.new_empty(0), value_states.new_empty(0)
        past, new = self.get_seq_length(), key_states.shape[-2]
        if self._keys.dim() == 1 or past + new > self._keys.shape[-2]:
            capacity = max(past + new, min(self._max_tokens, past + new + max(past, CACHE_GROWTH)))
            self._keys = _grown(self._keys, like=key_states, past=past, capacity=capacity)
            self._values = _grown(self._values, like=value_states, past=past, capacity=capacity)
        self._keys[:, :, past : past + new] = key_states
        self._values[:, :, past : past + new] = value_states
        self.keys, self.values = self._keys[:, :, : past + new], self._values[:, :, : past + new]
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all rows of the batch except these."""
        length = self.get_seq_length()
        self._keys, self._values = self._keys[rows], self._values[rows]
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]


def _grown(buffer: torch.Tensor, *, like: torch.Tensor, past: int, capacity: int) -> torch.Tensor:
    batch, heads, _, width = like.shape
    grown = like.new_empty(batch, heads, capacity, width)
    if past:
        grown[:, :, :past] = buffer[:, :, :past]
    return grown


def _new_cache(model: Any, *, max_tokens: int) -> Cache:
    """A cache of GrowingLayers if all layers attend to the whole past; otherwise the library's own cache."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"])
    return (
        Cache(layer_class_to_replicate=partial(GrowingLayer, max_tokens=max_tokens))
        if kinds == {"full_attention"}
        else DynamicCache(config=model.config)
    )


@torch.no_grad()
def sample(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_token_ids: Sequence[int],
    pad_token_id: int,
    seeds: Sequence[int] | None = None,
    top_p: float = 1.0,
    stop: StopStrings | None = None,
    batch_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Sampled:
    """One completion for each prompt, drawn from the model's own distribution (temperature 0: the likeliest token).

    Training never truncates the distribution (top_p 1, no top-k), so that the log-probabilities are those of the trainer. top_p below 1
    keeps only the likeliest tokens with this total probability (nucleus sampling), for evaluation by common settings.
    seeds: one for each prompt. A completion is a function of model, prompt and seed, except for the rounding of a forward pass, which
    depends on the batch. Temperature 0 needs no seeds.
    stop: strings that end a completion.
    on_progress: called with (prompts done, new tokens) after each batch.
    Raises: NumericFailure if the model's log-probabilities are not numbers.
    """
    if temperature > 0 and seeds is None:
        raise ValueError("sampling needs a seed for each prompt")
    seeds_B = torch.tensor(list(seeds or [0] * len(prompt_ids)), dtype=torch.long, device=model.device)
    if len(seeds_B) != len(prompt_ids):
        raise ValueError(f"{len(seeds_B)} seeds for {len(prompt_ids)} prompts")
    size = batch_size or DEFAULT_BATCH_SIZE
    completions: list[list[int]] = []
    logprobs: list[list[float]] = []
    eos = torch.tensor(list(eos_token_ids), device=model.device)
    for start in range(0, len(prompt_ids), size):
        chunk = prompt_ids[start : start + size]
        ids, lps = _sample_batch(
            model, chunk, seeds_B[start : start + size], max_new_tokens, temperature, top_p, eos, pad_token_id, stop
        )
        completions += ids
        logprobs += lps
        if on_progress is not None:
            on_progress(len(chunk), sum(map(len, ids)))
    ends = set(eos_token_ids)
    return Sampled(completions, logprobs, [is_truncated(ids, ends=ends, stop=stop) for ids in completions])


def _sample_batch(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    seeds_A: torch.Tensor,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    eos: torch.Tensor,
    pad_token_id: int,
    stop: StopStrings | None,
) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids and log-probabilities of each row."""
    device = model.device
    width = max(map(len, prompt_ids))
    input_ids_AL = torch.full((len(prompt_ids), width), pad_token_id, device=device)
    mask_AL = torch.zeros(len(prompt_ids), width + max_new_tokens, dtype=torch.long, device=device)
    for row, ids in enumerate(prompt_ids):  # padded on the left, so that every row's next token is at the same place
        input_ids_AL[row, width - len(ids) :] = torch.tensor(ids, device=device)
        mask_AL[row, width - len(ids) : width] = 1
    mask_AL[:, width:] = 1
    position_A = mask_AL[:, :width].sum(1)
    position_ids_AL = (mask_AL[:, :width].cumsum(1) - 1).clamp(min=0)

    tokens_BT = torch.full((len(prompt_ids), max_new_tokens), pad_token_id, device=device)
    logps_BT = torch.zeros(len(prompt_ids), max_new_tokens, device=device)
    lengths_B = torch.full((len(prompt_ids),), max_new_tokens, device=device)
    active_A = torch.arange(len(prompt_ids), device=device)  # rows of the result that the batch still holds
    is_done_A = torch.zeros(len(prompt_ids), dtype=torch.bool, device=device)
    cache = _new_cache(model, max_tokens=width + max_new_tokens)
    for step in range(max_new_tokens):
        logits_AV = model(
            input_ids=input_ids_AL,
            attention_mask=mask_AL[:, : width + step],
            position_ids=position_ids_AL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        logps_AV = torch.log_softmax(logits_AV.float() / (temperature or 1.0), dim=-1)
        if top_p < 1:
            logps_AV = _nucleus(logps_AV, top_p)
        token_A = logps_AV.argmax(-1) if temperature == 0 else tokens_at(logps_AV.exp(), uniforms(seeds_A, step))
        tokens_BT[active_A, step] = token_A
        logps_BT[active_A, step] = logps_AV.gather(1, token_A[:, None])[:, 0]
        ended_A = torch.isin(token_A, eos) & ~is_done_A
        if stop is not None:
            may_end_A = stop.closing(logps_AV.shape[-1], device)[token_A] & ~is_done_A
            for row in may_end_A.nonzero()[:, 0].tolist():
                ended_A[row] |= stop.is_complete(tokens_BT[active_A[row], : step + 1].tolist())
        lengths_B[active_A[ended_A]] = step + 1
        is_done_A = is_done_A | ended_A
        num_done = int(is_done_A.sum())
        if num_done == len(is_done_A):
            break
        if num_done > COMPACT_ABOVE * len(is_done_A):
            keep = (~is_done_A).nonzero()[:, 0]
            for layer in cache.layers:
                layer.keep(keep) if isinstance(layer, GrowingLayer) else layer.batch_select_indices(keep)
            active_A, mask_AL, position_A, token_A = active_A[keep], mask_AL[keep], position_A[keep], token_A[keep]
            is_done_A, seeds_A = is_done_A[keep], seeds_A[keep]
        input_ids_AL = token_A[:, None]
        position_ids_AL = position_A[:, None]
        position_A = position_A + 1
    if logps_BT.isnan().any():
        raise NumericFailure("the model's log-probabilities are not numbers while it generates")
    lengths = lengths_B.tolist()
    return (
        [row[:length] for row, length in zip(tokens_BT.tolist(), lengths, strict=True)],
        [row[:length] for row, length in zip(logps_BT.tolist(), lengths, strict=True)],
    )


def _nucleus(logps_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Log-probabilities of the smallest set of likeliest tokens with total probability `top_p`; -inf for the others.

    Source: Holtzman et al. (arXiv 1904.09751), eq. 2-3.
    """
    sorted_BV, order_BV = logps_BV.sort(-1, descending=True)
    probabilities_BV = sorted_BV.exp()
    # A token stays if the likelier ones have less than top_p together.
    is_cut_BV = probabilities_BV.cumsum(-1, dtype=torch.float64) - probabilities_BV >= top_p
    cut_BV = logps_BV.masked_fill(is_cut_BV.gather(-1, order_BV.argsort(-1)), -torch.inf)
    return torch.log_softmax(cut_BV, dim=-1)
