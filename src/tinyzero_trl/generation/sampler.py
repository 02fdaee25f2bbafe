"""Batched sampling from a causal language model, in which finished rows cost nothing and waiting prompts take their places.

`model.generate` computes every row of a batch until the longest has ended. Thoughts differ in length tenfold, so here a finished row
leaves the batch, and once enough have left, waiting prompts join it (continuous batching): the batch stays wide.
Axes: see tinyzero_trl.algorithms; A = rows that are in the batch, N = all prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tinyzero_trl.failures import NumericFailure
from tinyzero_trl.generation.decoding import Cohort, bytes_of_a_token, decoder_of
from tinyzero_trl.models import StopStrings, is_truncated
from tinyzero_trl.seeding import tokens_at, uniforms

DROP_ABOVE = 1 / 16
"""Share of finished rows above which they leave the batch: until then they are computed, and leaving moves others."""
JOIN_ABOVE = 1 / 4
"""Share of the batch that is free when waiting prompts join it: fewer, larger cohorts are cheaper to compute."""
DEFAULT_BATCH_SIZE = 256
"""Rows sampled together by default."""
WIDE_BATCH_SIZE, WIDE_BYTES = 512, 2**30
"""Rows sampled together by default on a CPU, if their keys and values take no more bytes: it computes wide batches in less time a row."""


@dataclass(frozen=True)
class Sampled:
    """Completions in the order of their prompts."""

    completion_ids: list[list[int]]
    """Token ids, with the end-of-sequence token if there was one."""
    logprobs: list[list[float]]
    """Log-probability of each token under the distribution it was drawn from (after temperature)."""
    is_truncated: list[bool]
    """True if `max_new_tokens` was reached before an end-of-sequence token or a stop string."""


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
    batch_size: most rows in the batch (default: DEFAULT_BATCH_SIZE or WIDE_BATCH_SIZE).
    on_progress: called with (prompts done, new tokens) as rows leave the batch.
    Raises: NumericFailure if the model's log-probabilities are not numbers.
    """
    if temperature > 0 and seeds is None:
        raise ValueError("sampling needs a seed for each prompt")
    if seeds is not None and len(seeds) != len(prompt_ids):
        raise ValueError(f"{len(seeds)} seeds for {len(prompt_ids)} prompts")
    decoder = decoder_of(model, pad_token_id=pad_token_id, max_new_tokens=max_new_tokens)
    draws = _Draws(
        seeds or [0] * len(prompt_ids),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        eos=torch.tensor(list(eos_token_ids), device=model.device),
        stop=stop,
    )
    size, num_joined = batch_size or _default_size(model, prompt_ids, max_new_tokens), 0
    cohorts: list[Cohort] = []
    while cohorts or num_joined < len(prompt_ids):
        num_free = size - len(draws.rows_A)
        may_join = num_free >= JOIN_ABOVE * size if decoder.takes_several_cohorts else not cohorts
        if num_joined < len(prompt_ids) and may_join:
            for cohort in cohorts:
                cohort.shrink()
            rows = range(num_joined, min(num_joined + num_free, len(prompt_ids)))
            logits_BV, cohort = decoder.read([prompt_ids[row] for row in rows])
            cohorts.append(cohort)
            draws.join(rows, logits_BV)
            num_joined = rows.stop
        else:
            draws.step(decoder.step(cohorts, draws.tokens_A))
        if draws.num_done > DROP_ABOVE * len(draws.rows_A) or any(cohort.is_full for cohort in cohorts):
            num_done, num_tokens = draws.drop(cohorts)
            cohorts = [cohort for cohort in cohorts if len(cohort)]
            if on_progress is not None:
                on_progress(num_done, num_tokens)
    completion_ids, logprobs = draws.completions()
    ends = set(eos_token_ids)
    return Sampled(completion_ids, logprobs, [is_truncated(ids, ends=ends, stop=stop) for ids in completion_ids])


def _default_size(model: Any, prompt_ids: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    longest = max(map(len, prompt_ids), default=0) + max_new_tokens
    num_bytes = WIDE_BATCH_SIZE * longest * bytes_of_a_token(model.config, model.dtype.itemsize)
    is_wide = model.device.type == "cpu" and num_bytes <= WIDE_BYTES
    return WIDE_BATCH_SIZE if is_wide else DEFAULT_BATCH_SIZE


class _Draws:
    """The tokens drawn so far of all prompts, and the rows in the batch, in the order of its cohorts."""

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        eos: torch.Tensor,
        stop: StopStrings | None,
    ):
        self._max_new_tokens, self._temperature, self._top_p = max_new_tokens, temperature, top_p
        self._eos, self._stop = eos, stop
        num, device = len(seeds), eos.device
        self._seeds_N = torch.tensor(list(seeds), dtype=torch.long, device=device)
        self._lengths_N = torch.zeros(num, dtype=torch.long, device=device)
        # The last column takes what is computed of rows that are done and still in the batch.
        self._tokens_NT = torch.zeros(num, max_new_tokens + 1, dtype=torch.long, device=device)
        self._logps_NT = torch.zeros(num, max_new_tokens + 1, device=device)
        self.rows_A = torch.zeros(0, dtype=torch.long, device=device)
        """Row of the result."""
        self.tokens_A = torch.zeros(0, dtype=torch.long, device=device)
        """Token drawn last."""
        self._is_done_A = torch.zeros(0, dtype=torch.bool, device=device)
        self.num_done = 0
        """Rows that are done and still in the batch."""

    def join(self, rows: range, logits_BV: torch.Tensor) -> None:
        """Add rows at the end of the batch, with the first token of each."""
        rows_B = torch.arange(rows.start, rows.stop, device=self.rows_A.device)
        tokens_B, is_done_B = self._drawn(logits_BV, rows_B, torch.zeros_like(rows_B, dtype=torch.bool))
        self.rows_A = torch.cat([self.rows_A, rows_B])
        self.tokens_A = torch.cat([self.tokens_A, tokens_B])
        self._is_done_A = torch.cat([self._is_done_A, is_done_B])
        self.num_done = int(self._is_done_A.sum())

    def step(self, logits_AV: torch.Tensor) -> None:
        """Draw the next token of each row."""
        self.tokens_A, self._is_done_A = self._drawn(logits_AV, self.rows_A, self._is_done_A)
        self.num_done = int(self._is_done_A.sum())

    def drop(self, cohorts: Sequence[Cohort]) -> tuple[int, int]:
        """Remove the rows that are done; returns their number and that of their tokens."""
        done_A, left, start = self._is_done_A.tolist(), [], 0
        num_done, num_tokens = sum(done_A), int(self._lengths_N[self.rows_A[self._is_done_A]].sum())
        for cohort in cohorts:
            stop = start + len(cohort)
            left += [start + row for row in cohort.drop([row for row in range(len(cohort)) if done_A[start + row]])]
            start = stop
        left_A = torch.tensor(left, dtype=torch.long, device=self.rows_A.device)
        self.rows_A, self.tokens_A, self._is_done_A = (
            of_A[left_A] for of_A in (self.rows_A, self.tokens_A, self._is_done_A)
        )
        self.num_done = 0
        return num_done, num_tokens

    def completions(self) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and log-probabilities of every row."""
        lengths = self._lengths_N.tolist()
        if self._logps_NT.isnan().any():
            raise NumericFailure("the model's log-probabilities are not numbers while it generates")
        return (
            [row[:length] for row, length in zip(self._tokens_NT.tolist(), lengths, strict=True)],
            [row[:length] for row, length in zip(self._logps_NT.tolist(), lengths, strict=True)],
        )

    def _drawn(
        self, logits_AV: torch.Tensor, rows_A: torch.Tensor, was_done_A: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each row, recorded unless the row was done before, and True for rows that are done."""
        steps_A = self._lengths_N[rows_A]
        logps_AV = torch.log_softmax(logits_AV.float() / (self._temperature or 1.0), dim=-1)
        if self._top_p < 1:
            logps_AV = _nucleus(logps_AV, self._top_p)
        if self._temperature == 0:
            tokens_A = logps_AV.argmax(-1)
        else:
            tokens_A = tokens_at(logps_AV.exp(), uniforms(self._seeds_N[rows_A], steps_A))
        columns_A = steps_A.masked_fill(was_done_A, self._max_new_tokens)
        self._tokens_NT[rows_A, columns_A] = tokens_A
        self._logps_NT[rows_A, columns_A] = logps_AV.gather(1, tokens_A[:, None])[:, 0]
        self._lengths_N[rows_A] = steps_A + ~was_done_A
        is_done_A = was_done_A | torch.isin(tokens_A, self._eos) | (steps_A + 1 == self._max_new_tokens)
        if self._stop is not None:
            may_end_A = self._stop.closing(logps_AV.shape[-1], logps_AV.device)[tokens_A] & ~is_done_A
            for place in may_end_A.nonzero()[:, 0].tolist():
                row = rows_A[place]
                ids = self._tokens_NT[row, : self._lengths_N[row]].tolist()
                is_done_A[place] = self._stop.is_complete(ids)
        return tokens_A, is_done_A


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
