"""Dynamic sampling: groups without signal are replaced by groups of fresh prompts before anything is trained on.

Source: DAPO (arXiv 2503.14476), eq. 11, which draws prompts until the batch is full; here the number of rounds has a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from tinyzero_trl.trainer.batches import Batch, groups_with_signal, joined, rows_in, rows_of


@dataclass(frozen=True)
class Filled:
    """A batch after dynamic sampling, and how many groups of this process it took."""

    batch: Batch
    num_rounds: int
    num_generated: int
    num_replaced: int


def filled(
    scored: Batch,
    *,
    problems: Collection[int],
    max_rounds: int,
    num_generations: int,
    pad_token_id: int,
    fresh_problems: Callable[[int, Collection[int]], list[int]],
    roll_out: Callable[[list[int], int], Batch],
    over_processes: Callable[[int], torch.Tensor],
    num_processes: int,
) -> Filled:
    """The batch with groups of fresh problems in the place of those that teach nothing, after up to `max_rounds` more rollouts.

    Each process fills its own groups. All generate equally many, as many as the process that lacks most; groups with signal beyond
    what is missing are dropped. Groups that stay without signal after the last round keep their advantages of 0.

    problems: those of the batch, over all processes. fresh_problems: at most so many others than these. roll_out: the scored batch of
    this process's share of given problems, with so many rows.
    """
    num_groups = len(scored["completion_ids"]) // num_generations
    has_signal = groups_with_signal(scored["advantages"], num_generations=num_generations)
    parts = [rows_of(scored, rows_in(has_signal.nonzero()[:, 0], num_generations=num_generations))]
    num_with_signal = num_filled = int(has_signal.sum())
    num_rounds, num_generated = 0, num_groups
    seen = set(problems)
    while num_rounds < max_rounds:
        most_missing = int(over_processes(num_groups - num_filled).max())
        fresh = fresh_problems(most_missing * num_processes, seen)
        num_each = len(fresh) // num_processes
        if num_each == 0:  # nothing is missing, or every problem there is has been tried
            break
        num_rounds += 1
        num_generated += num_each
        seen.update(fresh)
        more = roll_out(fresh, num_each * num_generations)
        good = groups_with_signal(more["advantages"], num_generations=num_generations).nonzero()[:, 0]
        good = good[: num_groups - num_filled]
        parts.append(rows_of(more, rows_in(good, num_generations=num_generations)))
        num_filled += len(good)
    if num_rounds:
        left = (~has_signal).nonzero()[: num_groups - num_filled, 0]
        parts.append(rows_of(scored, rows_in(left, num_generations=num_generations)))
        scored = scored | joined(parts, pad_token_id=pad_token_id)
    return Filled(scored, num_rounds, num_generated, num_filled - num_with_signal)
