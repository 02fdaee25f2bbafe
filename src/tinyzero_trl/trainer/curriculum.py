"""Which problems come when: by a column of the data, or by how often the policy itself has solved them.

Axes: R = rows of the training data, G = completions of a group.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from tinyzero_trl.config import CurriculumSettings
from tinyzero_trl.seeding import generator_of
from tinyzero_trl.task import Outcome
from tinyzero_trl.trainer.problems import ROW_INDEX
from tinyzero_trl.trainer.rollouts import Rollouts

SUCCESS = "success"
RATE = 0.5
"""Weight of a group's share of solved completions against what its problem had before: a policy changes within a few visits."""
FLOOR = 0.05
"""Added to p (1 - p), at most 0.25: a problem never or always solved still comes a sixth as often as one solved half the time."""
UNSEEN = 0.5
"""Success of a problem nothing is known about: worth a visit."""


def middling(success_R: torch.Tensor) -> torch.Tensor:
    """Weights by which problems of middling success come most often, [R] from success rates in [0, 1], NaN where unknown.

    The variance of a reward of 0 or 1 is p (1 - p), and with it grows what a group teaches.
    """
    known_R = success_R.nan_to_num(nan=UNSEEN)
    return known_R * (1 - known_R) + FLOOR


def drawn(weights_R: torch.Tensor, num: int, *, generator: torch.Generator) -> list[int]:
    """`num` rows without repetition, each next one in proportion to the weights of those left; rows of weight 0 never.

    Source: Efraimidis and Spirakis (2006). torch.multinomial ends at 2^24 rows.
    """
    uniforms_R = torch.rand(len(weights_R), generator=generator, dtype=torch.float64)
    waits_R = -uniforms_R.log() / weights_R.double()
    num = min(num, int((weights_R > 0).sum()))
    return [int(row) for row in waits_R.topk(num, largest=False).indices]


def easy_first(difficulty_R: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Row numbers by difficulty, lowest first; rows of the same difficulty in random order."""
    shuffled_R = torch.randperm(len(difficulty_R), generator=generator)
    return shuffled_R[difficulty_R[shuffled_R].argsort(stable=True)]


class Curriculum(Rollouts):
    """Puts the problems of its choice in the place of those the data loader brings.

    Order: each epoch goes through all problems, easy ones first; by success, the order is made anew as an epoch begins, and the first is random.
    Weight: each batch is drawn in proportion to the column, or by success to p (1 - p) + FLOOR; there are no epochs.
    It chooses for dynamic sampling too. Every process chooses alike: from the seed, counters, and what all of them have seen.
    """

    curriculum_settings: CurriculumSettings

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        by = self.curriculum_settings.by
        if by is None:
            return
        if by == SUCCESS and self.task is None:
            raise ValueError("curriculum.by=success needs a task, which says what is solved")
        num_rows = len(self.train_dataset)
        self._known_R = (
            torch.full((num_rows,), torch.nan, dtype=torch.float64)
            if by == SUCCESS
            else torch.tensor(self.train_dataset[by][:], dtype=torch.float64)
        )
        self._order: list[int] = []
        self._num_epochs = 0

    def chooses_problems(self) -> bool:
        return self.curriculum_settings.by is not None or super().chooses_problems()

    def fresh_problems(self, num: int, *, exclude: Collection[int]) -> list[int]:
        if self.curriculum_settings.by is None:
            return super().fresh_problems(num, exclude=exclude)
        return self._next_problems(num, exclude=exclude)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.model.training and self.curriculum_settings.by is not None:
            num = len(inputs) * self.accelerator.num_processes // self.num_generations
            problems = self._next_problems(num)
            inputs = self.my_rows(problems, num_rows=len(inputs))
            self._report(problems)
        return super()._generate_and_score_completions(inputs)

    def _next_problems(self, num: int, *, exclude: Collection[int] = ()) -> list[int]:
        is_excluded_R = torch.zeros(len(self._known_R), dtype=torch.bool)
        is_excluded_R[list(exclude)] = True
        if self.curriculum_settings.kind == "weight":
            weights_R = middling(self._known_R) if self.curriculum_settings.by == SUCCESS else self._known_R
            generator = generator_of(self.args.seed, "curriculum", self.num_generated_batches)
            return drawn(weights_R.masked_fill(is_excluded_R, 0.0), num, generator=generator)
        chosen = [row for row in self._order if not is_excluded_R[row]][:num]
        if len(chosen) < num:  # the tail that fills no batch is left out, as TRL does
            self._begin_epoch()
            chosen = [row for row in self._order if not is_excluded_R[row]][:num]
        taken = set(chosen)
        self._order = [row for row in self._order if row not in taken]
        return chosen

    def _begin_epoch(self) -> None:
        difficulty_R = self._known_R
        if self.curriculum_settings.by == SUCCESS:
            average = float(self._known_R.nanmean().nan_to_num(nan=UNSEEN))
            difficulty_R = 1 - self._known_R.nan_to_num(nan=average)
        generator = generator_of(self.args.seed, "order", self._num_epochs)
        self._order = easy_first(difficulty_R, generator=generator).tolist()
        self._num_epochs += 1

    def _report(self, problems: list[int]) -> None:
        metrics, known = self._metrics["train"], self._known_R[problems]
        if self.curriculum_settings.by == SUCCESS:
            metrics["curriculum/success_before"].append(known.nanmean().item())
            metrics["curriculum/seen"].append((~self._known_R.isnan()).double().mean().item())
        else:
            metrics[f"curriculum/{self.curriculum_settings.by}"].append(known.mean().item())

    def _measure(self, mode: str, records: list[dict[str, Any]]) -> None:
        super()._measure(mode, records)
        if mode != "train" or self.curriculum_settings.by != SUCCESS:
            return
        for first in range(0, len(records), self.num_generations):
            group = records[first : first + self.num_generations]
            share = sum(record["outcome"] == Outcome.correct for record in group) / len(group)
            problem = group[0][ROW_INDEX]
            before = float(self._known_R[problem])
            self._known_R[problem] = share if before != before else before + RATE * (share - before)

    def resume_state(self) -> dict[str, Any]:
        state = super().resume_state()
        if self.curriculum_settings.by is None:
            return state
        order = torch.tensor(self._order, dtype=torch.long)
        mine = {"known": self._known_R.clone(), "order": order, "num_epochs": self._num_epochs}
        return {**state, "curriculum": mine}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        if self.curriculum_settings.by is not None:
            mine = state["curriculum"]
            self._known_R, self._order = mine["known"].clone(), mine["order"].tolist()
            self._num_epochs = mine["num_epochs"]
