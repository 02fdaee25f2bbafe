"""How many rows go into each micro-batch: a plan made of lengths alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

OVERHEAD = 0.01
"""What one more forward and backward pass costs, as a share of the real tokens planned: launches, collectives, metrics."""


def chunk_sizes(
    num_prompt: Sequence[int], num_completion: Sequence[int], *, budget: int, is_packed: bool = False
) -> list[int]:
    """Sizes of consecutive chunks of rows that cost least, each within the budget unless it is a single row.

    num_prompt, num_completion: tokens of each row, at best sorted. Prompts are padded on the left and completions on the right, so
    a chunk computes rows x (longest prompt + longest completion) tokens, or just its rows' own where it is packed. Costs are
    these tokens plus OVERHEAD of all real tokens for each chunk; found by dynamic programming, exactly, in O(rows x largest chunk).
    """
    overhead = OVERHEAD * (sum(num_prompt) + sum(num_completion))
    least = [0.0] + [math.inf] * len(num_prompt)  # cost of the first `stop` rows
    start_of = [0] * (len(num_prompt) + 1)  # where the last chunk of the first `stop` rows starts
    for stop in range(1, len(num_prompt) + 1):
        longest_prompt = longest_completion = num_real = 0
        for start in range(stop - 1, -1, -1):
            longest_prompt = max(longest_prompt, num_prompt[start])
            longest_completion = max(longest_completion, num_completion[start])
            num_real += num_prompt[start] + num_completion[start]
            computed = num_real if is_packed else (stop - start) * (longest_prompt + longest_completion)
            if computed > budget and stop - start > 1:
                break  # one more row never makes a chunk smaller
            if least[start] + computed + overhead < least[stop]:
                least[stop], start_of[stop] = least[start] + computed + overhead, start
    sizes = []
    stop = len(num_prompt)
    while stop:
        sizes.append(stop - start_of[stop])
        stop = start_of[stop]
    return sizes[::-1]
