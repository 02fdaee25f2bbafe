"""Each epoch's own order of the problems, a function of the seed and the epoch, so that a resumed run finds it again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's sampler, whose generator goes on from epoch to epoch; here epoch n is that of an uninterrupted TRL run wherever one begins.

    TRL's own begins anew in a resumed run, which sees epoch 0's order once more.
    """

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()


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
