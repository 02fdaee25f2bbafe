"""Which row of the training data a problem is, and problems chosen by us in the place of those the data loader brings.

Axes: B = this process's completions of a generation batch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from accelerate.utils import gather_object

from tinyzero_trl.seeding import generator_of
from tinyzero_trl.trainer.seeds import Seeds

ROW_INDEX = "row_index"
"""Column of the training data, added here: the number of the row."""


class Problems(Seeds):
    """Numbers the rows of the training data where a feature chooses among them, and draws fresh ones."""

    train_dataset: Any
    dynamic_sampling_rounds: int = 0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.chooses_problems():
            self.train_dataset = self.train_dataset.add_column(ROW_INDEX, list(range(len(self.train_dataset))))

    def chooses_problems(self) -> bool:
        """Whether problems are trained on that the data loader did not bring."""
        return self.dynamic_sampling_rounds > 0

    def fresh_problems(self, num: int, *, exclude: Collection[int]) -> list[int]:
        """Row numbers of at most `num` other problems than these, the same on every process; fewer where there are no more.

        Drawn from the seed and the number of batches before, so that there is nothing to save.
        """
        generator = generator_of(self.args.seed, "fresh problems", self.num_generated_batches)
        order = torch.randperm(len(self.train_dataset), generator=generator).tolist()
        left_out = set(exclude)
        return [problem for problem in order[: num + len(left_out)] if problem not in left_out][:num]

    def problems_of(self, inputs: list[dict[str, Any]]) -> list[int]:
        """The row number of each completion's problem, over all processes."""
        numbers: list[int] = gather_object([row[ROW_INDEX] for row in inputs])
        return numbers

    def my_rows(self, problems: list[int], *, num_rows: int) -> list[dict[str, Any]]:
        """This process's `num_rows` of the rows of all processes, where each problem is repeated as often as a group is large."""
        first = self.accelerator.process_index * num_rows
        mine = [problems[row // self.num_generations] for row in range(first, first + num_rows)]
        rows = {problem: self.train_dataset[problem] for problem in set(mine)}
        return [dict(rows[problem]) for problem in mine]
