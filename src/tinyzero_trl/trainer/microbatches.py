"""Micro-batches without work whose result is known to be zero: padding, and rows that carry no gradient.

The rows of the micro-steps that belong to one optimizer step are dealt anew into chunks. A chunk is what one forward and backward
pass computes; a micro-step of TRL's runs as many chunks as fall to it, which may be none. Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tinyzero_trl.config import CPU_TOKENS, BatchingSettings
from tinyzero_trl.trainer.batches import Batch, concatenated, take, trim, with_dummy

MEAN_OVER_ROWS = ("grpo", "dr_grpo", "sapo", "luspo")
"""Losses that divide by the number of rows of a micro-batch."""
SUM_OVER_TOKENS = ("dapo", "cispo", "vespo")
"""Losses that divide by a token count of the whole generation batch. bnpo divides by the micro-batch's: its rows stay where TRL has them."""
OVERHEAD = 0.01
"""Cost of one more forward and backward pass, as a share of the real tokens planned: launches, collectives, metrics."""


@dataclass
class OptimizerStep:
    """State that the micro-steps of one optimizer step share."""

    number: int = -1
    """Optimizer steps before it."""
    position: int = 0
    """Its micro-steps that are done."""
    has_signal: bool = True
    """Some row of some process has a gradient."""
    losses: list[tuple[Batch, torch.Tensor]] = field(default_factory=list)
    """Each forward pass's batch and loss, kept until the gradient is known to be finite."""
    earlier_loss: torch.Tensor | None = None
    """Sum over the chunks of this micro-step whose backward pass is done; None: there was none."""
    chunk_metrics: list[tuple[int, dict[str, list[float]]]] = field(default_factory=list)
    """Completion tokens of each chunk over all processes, and what TRL's loss logged for it."""


@dataclass(frozen=True)
class Cut:
    """Rows in the order to compute them in, and where they are cut into chunks; equally many chunks and rows on every process."""

    order: torch.Tensor
    """Row numbers; the number of rows stands for a dummy, where another process has more."""
    sizes: list[int]
    """Rows of each chunk."""
    num_tokens: list[int]
    """Completion tokens of each chunk, over all processes."""

    def chunks(self) -> list[tuple[torch.Tensor, int]]:
        """Row numbers and completion tokens of each chunk."""
        parts = torch.split(self.order, self.sizes) if self.sizes else ()
        return list(zip(parts, self.num_tokens, strict=True))


def cut(
    rows: torch.Tensor,
    sizes_B2: torch.Tensor,
    *,
    prompt_B: torch.Tensor | None,
    settings: BatchingSettings,
    rows_at_once: int,
    accelerator: Any,
) -> Cut:
    """Chunks of this process's rows, planned on the longest row of each place over all processes.

    rows: row numbers. sizes_B2: prompt and completion columns of all B rows. prompt_B: a number for each, by which rows of the same prompt
    are kept together; None where a prompt is computed for each of them. rows_at_once: TRL's micro-batch of these rows bounds a chunk where
    the settings have no budget, and CPU_TOKENS on a CPU.
    """
    device = accelerator.device
    if settings.sort_by_length:
        rows = rows[sizes_B2[rows].sum(1).argsort(descending=True, stable=True)]
    if prompt_B is not None:
        rows = rows[first_place(prompt_B[rows]).argsort(stable=True)]
    most = int(accelerator.gather(torch.tensor([len(rows)], device=device)).max())
    if not most:
        return Cut(rows, [], [])
    padded = torch.zeros(most, 3, dtype=torch.long, device=device)
    padded[: len(rows), :2] = sizes_B2[rows]
    if prompt_B is not None:
        padded[1 : len(rows), 2] = prompt_B[rows[1:]] == prompt_B[rows[:-1]]
    of_each_process = accelerator.gather(padded).view(-1, most, 3)
    budget = settings.max_tokens_per_microbatch
    if budget is None:
        # TRL's own micro-batches of these rows take at least this, so that memory never grows.
        widest = int(accelerator.gather(sizes_B2.amax(0)[None]).amax(0).sum())
        budget = rows_at_once * widest
        if device.type == "cpu":
            budget = min(budget, CPU_TOKENS)
    longest = of_each_process.amax(0)
    sizes = chunk_sizes(
        longest[:, 0].tolist(),
        longest[:, 1].tolist(),
        budget=budget,
        is_packed=settings.packing,
        shares_prompt=None if prompt_B is None else of_each_process[:, :, 2].amin(0).tolist(),
    )
    order = torch.cat([rows, rows.new_full((most - len(rows),), len(sizes_B2))])
    num_tokens = of_each_process[:, :, 1].sum(0)
    return Cut(order, sizes, [int(part.sum()) for part in torch.split(num_tokens, sizes)])


def first_place(values: torch.Tensor) -> torch.Tensor:
    """Each entry's value as the first place that it has; integers of at least 0, one dimension."""
    places = torch.arange(len(values), device=values.device)
    first = places.new_full((int(values.max()) + 1 if len(values) else 0,), len(values))
    return first.scatter_reduce_(0, values, places, "amin")[values]


def chunk_sizes(
    num_prompt: Sequence[int],
    num_completion: Sequence[int],
    *,
    budget: int,
    is_packed: bool = False,
    shares_prompt: Sequence[int] | None = None,
) -> list[int]:
    """Sizes of consecutive chunks of rows that cost least, each within the budget unless it is a single row.

    num_prompt, num_completion: tokens of each row, best sorted. A chunk computes rows x (longest prompt + longest completion)
    tokens, or just its rows' own where it is packed. shares_prompt: true for a row with the prompt of the row before it, which is computed
    once for both; no padding is computed then, and the budget bounds the rows' own tokens, which attention has to hold. A chunk costs the
    tokens it computes and OVERHEAD of all real tokens. The least cost is found by dynamic programming, exactly, in O(rows x largest chunk).
    """
    overhead = OVERHEAD * (sum(num_prompt) + sum(num_completion))
    least = [0.0] + [math.inf] * len(num_prompt)  # cost of the first `stop` rows
    start_of = [0] * (len(num_prompt) + 1)  # where the last chunk of the first `stop` rows starts
    for stop in range(1, len(num_prompt) + 1):
        longest_prompt = longest_completion = num_real = num_shared = 0
        for start in range(stop - 1, -1, -1):
            longest_prompt = max(longest_prompt, num_prompt[start])
            longest_completion = max(longest_completion, num_completion[start])
            num_real += num_prompt[start] + num_completion[start]
            if shares_prompt is not None and start + 1 < stop and shares_prompt[start + 1]:
                num_shared += num_prompt[start]
            is_padded = not is_packed and shares_prompt is None
            held = (stop - start) * (longest_prompt + longest_completion) if is_padded else num_real
            if held > budget and stop - start > 1:
                break  # one more row never makes a chunk smaller
            cost = least[start] + held - num_shared + overhead
            if cost < least[stop]:
                least[stop], start_of[stop] = cost, start
    sizes = []
    stop = len(num_prompt)
    while stop:
        sizes.append(stop - start_of[stop])
        stop = start_of[stop]
    return sizes[::-1]


def dealt(
    slices: list[Batch],
    *,
    drops_rows: bool,
    loss_type: str,
    needs_chunk: bool,
    is_on_policy: bool,
    cut_rows: Callable[[torch.Tensor, Batch], Cut],
    complete: Callable[[Batch, bool], None],
) -> list[dict[str, Any]]:
    """The rows of these micro-steps in as many micro-steps of chunks: {"chunks": [batch, ...], "has_signal": bool} each.

    The gradient of the optimizer step is TRL's up to rounding: each row keeps its weight, whichever chunk it is in.
    drops_rows: rows without a gradient are left out. needs_chunk: a micro-step without chunks gets a dummy, for processes that meet in its
    backward pass. is_on_policy: the policy will not have changed since its rollouts. complete: adds to a chunk what its loss will need.
    """
    batch = concatenated(slices)
    rows, num_rows = with_dummy(batch), len(batch["completion_ids"])
    active = torch.ones(num_rows, dtype=torch.bool, device=rows["completion_ids"].device)
    if drops_rows:
        active = rows["advantages"][:num_rows].reshape(num_rows, -1).ne(0).any(1)
        active &= rows["completion_mask"][:num_rows].ne(0).any(1)

    def chunk_of(part: torch.Tensor, *, scale: float, num_tokens: int, is_on_policy: bool) -> Batch:
        chunk = trim(take(rows, part))
        chunk |= {"scale": scale, "num_tokens": num_tokens, "is_fresh": True, "is_old_known": False}
        complete(chunk, is_on_policy)
        return chunk

    chunks = []
    for part, num_tokens in cut_rows(active.nonzero()[:, 0], batch).chunks():
        scale = len(part) / (num_rows / len(slices)) if loss_type in MEAN_OVER_ROWS else 1.0
        chunks.append(chunk_of(part, scale=scale, num_tokens=num_tokens, is_on_policy=is_on_policy))
    micro_steps = []
    for step in range(len(slices)):
        # The last micro-step has a chunk if any has: processes exchange gradients in its backward pass.
        mine = chunks[len(chunks) * step // len(slices) : len(chunks) * (step + 1) // len(slices)]
        if not mine and needs_chunk:
            dummy = torch.tensor([num_rows], device=rows["completion_ids"].device)
            mine = [chunk_of(dummy, scale=0.0, num_tokens=0, is_on_policy=True)]
        micro_steps.append({"chunks": mine, "has_signal": bool(chunks)})
    return micro_steps


def over_chunks(chunk_metrics: Sequence[tuple[int, dict[str, list[float]]]]) -> dict[str, float]:
    """One number a metric: the extreme of extremes, and of averages the average by token."""
    entries: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for num_tokens, metrics in chunk_metrics:
        for name, values in metrics.items():
            entries[name] += [(num_tokens, value) for value in values if num_tokens and not math.isnan(value)]
    found: dict[str, float] = {}
    for name, entry in entries.items():
        values = [value for _, value in entry]
        if not values:
            continue
        if name.endswith(("min", "max")):
            found[name] = min(values) if name.endswith("min") else max(values)
        else:
            found[name] = sum(tokens * value for tokens, value in entry) / sum(tokens for tokens, _ in entry)
    return found
