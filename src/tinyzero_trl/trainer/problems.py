"""Which problems come when: as the data loader brings them, by a column of the data, or by how often the policy has solved them.

Axes: see tinyzero_trl.algorithms; R = rows of the training data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from trl.trainer.utils import RepeatSampler

from tinyzero_trl.config import CurriculumSettings
from tinyzero_trl.seeding import generator_of

SUCCESS = "success"
RATE = 0.5
"""Weight of a group's share of solved completions against what its problem had before: a policy changes within a few visits."""
FLOOR = 0.05
"""Added to p (1 - p), at most 0.25: a problem never or always solved still comes a sixth as often as one solved half the time."""
UNSEEN = 0.5
"""Success of a problem nothing is known about: worth a visit."""


def middling(success_R: torch.Tensor) -> torch.Tensor:
    """Weights by which problems of middling success come most often, [R] from success rates in [0, 1], NaN where unknown.

    The variance of a reward of 0 or 1 is p (1 - p), and a group teaches more as it grows.
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


class Problems:
    """The problems of the training data by row number, fresh ones for dynamic sampling, and the curriculum.

    `order`: each epoch goes through all problems, easy ones first; by success, the order is made anew as an epoch begins, and the first is random.
    `weight`: each batch is drawn in proportion to the column, or by success to p (1 - p) + FLOOR; there are no epochs.
    Every process chooses alike: from the seed, the number of batches before, and what all of them have seen.
    """

    def __init__(self, dataset: Any, curriculum: CurriculumSettings, *, seed: int):
        """dataset: the training rows."""
        self.dataset = dataset
        self.curriculum = curriculum
        self.seed = seed
        self.known_R = torch.empty(0)
        """Value of each problem in the curriculum's column, or its success rate, NaN if it has not come yet; empty without a curriculum."""
        if curriculum.by == SUCCESS:
            self.known_R = torch.full((len(dataset),), torch.nan, dtype=torch.float64)
        elif curriculum.by is not None:
            self.known_R = torch.tensor(dataset[curriculum.by][:], dtype=torch.float64)
        self._order: list[int] = []
        self._num_epochs = 0

    def fresh(self, num: int, *, exclude: Collection[int], num_batches: int) -> list[int]:
        """Row numbers of at most `num` other problems than these, the same on every process; fewer where there are no more.

        num_batches: generation batches before, from which and the seed they are drawn, so that there is nothing to save.
        """
        if self.curriculum.by is not None:
            return self.next(num, exclude=exclude, num_batches=num_batches)
        generator = generator_of(self.seed, "fresh problems", num_batches)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        left_out = set(exclude)
        return [problem for problem in order[: num + len(left_out)] if problem not in left_out][:num]

    def next(self, num: int, *, exclude: Collection[int] = (), num_batches: int) -> list[int]:
        """Row numbers of the next `num` problems of the curriculum. num_batches: generation batches before."""
        is_excluded_R = torch.zeros(len(self.known_R), dtype=torch.bool)
        is_excluded_R[list(exclude)] = True
        if self.curriculum.kind == "weight":
            weights_R = middling(self.known_R) if self.curriculum.by == SUCCESS else self.known_R
            generator = generator_of(self.seed, "curriculum", num_batches)
            return drawn(weights_R.masked_fill(is_excluded_R, 0.0), num, generator=generator)
        chosen = [row for row in self._order if not is_excluded_R[row]][:num]
        if len(chosen) < num:  # the tail that fills no batch is left out, as TRL does
            self._begin_epoch()
            chosen = [row for row in self._order if not is_excluded_R[row]][:num]
        taken = set(chosen)
        self._order = [row for row in self._order if row not in taken]
        return chosen

    def rows(self, problems: Sequence[int], *, num_generations: int, first: int, num_rows: int) -> list[dict[str, Any]]:
        """`num_rows` rows of the batch of these problems from row `first` on, each problem repeated as often as a group is large."""
        mine = [problems[row // num_generations] for row in range(first, first + num_rows)]
        rows = {problem: self.dataset[problem] for problem in set(mine)}
        return [dict(rows[problem]) for problem in mine]

    def metrics(self, problems: list[int]) -> dict[str, float]:
        """Metrics of the problems that the curriculum chose."""
        known = self.known_R[problems]
        if self.curriculum.by != SUCCESS:
            return {f"curriculum/{self.curriculum.by}": known.mean().item()}
        return {
            "curriculum/success_before": known.nanmean().item(),
            "curriculum/seen": (~self.known_R.isnan()).double().mean().item(),
        }

    def learn_success(self, is_solved_N: Sequence[bool], *, problems: Sequence[int], num_generations: int) -> None:
        """Move the success of each problem towards what its group did. problems: the row number of each completion."""
        if self.curriculum.by != SUCCESS:
            return
        for first in range(0, len(is_solved_N), num_generations):
            share = sum(is_solved_N[first : first + num_generations]) / num_generations
            problem = problems[first]
            before = float(self.known_R[problem])
            self.known_R[problem] = share if before != before else before + RATE * (share - before)

    def state(self) -> dict[str, Any]:
        """The state of the curriculum, to be saved."""
        order = torch.tensor(self._order, dtype=torch.long)
        return {"known": self.known_R.clone(), "order": order, "num_epochs": self._num_epochs}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.known_R, self._order = state["known"].clone(), state["order"].tolist()
        self._num_epochs = state["num_epochs"]

    def _begin_epoch(self) -> None:
        difficulty_R = self.known_R
        if self.curriculum.by == SUCCESS:
            average = float(self.known_R.nanmean().nan_to_num(nan=UNSEEN))
            difficulty_R = 1 - self.known_R.nan_to_num(nan=average)
        generator = generator_of(self.seed, "order", self._num_epochs)
        self._order = easy_first(difficulty_R, generator=generator).tolist()
        self._num_epochs += 1


class EpochSampler(RepeatSampler):
    """TRL's sampler, with an order for each epoch that is a function of the seed and the epoch.

    TRL's own goes on with one generator from epoch to epoch and begins anew in a resumed run, which sees epoch 0's order once more.
    Here epoch n is that of an uninterrupted TRL run wherever a run begins.
    """

    epoch = 0
    _known: tuple[int, list[int]] = (-1, [])
    """The last epoch that `batch` looked into, and its order."""

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self._wind(self.generator, self.epoch)
        return super().__iter__()

    def batch(self, number: int) -> list[int]:
        """Row numbers of the problems of the generation batch `number`, counted from 0 through all epochs, whichever iteration is under way."""
        epoch, index = divmod(number, self.num_samples // self.batch_size)
        if self._known[0] != epoch:
            order = list(range(self.num_samples))
            if self.shuffle:
                generator = torch.Generator()
                self._wind(generator, epoch)
                order = torch.randperm(self.num_samples, generator=generator).tolist()
            self._known = (epoch, order)
        return self._known[1][index * self.batch_size :][: self.batch_size]

    def _wind(self, generator: torch.Generator, epoch: int) -> None:
        """Bring the generator to where TRL's is before it draws the order of this epoch."""
        generator.manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.num_samples, generator=generator)


def epoch_sampler(sampler: RepeatSampler) -> EpochSampler:
    """The same sampler with an order for each epoch."""
    return EpochSampler(
        data_source=sampler.data_source,
        mini_repeat_count=sampler.mini_repeat_count,
        batch_size=sampler.batch_size,
        repeat_count=sampler.repeat_count,
        shuffle=sampler.shuffle,
        seed=sampler.seed,
    )
