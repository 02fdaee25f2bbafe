"""Truncated completions where stop strings end some: TRL knows end tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch

from tinyzero_trl.trainer.batches import Batch

STOPPED = "completions/stopped_ratio"
"""Share of completions that a stop string ended, the only metric here that TRL does not have."""


def length_metrics(
    completion_ids: Sequence[Sequence[int]],
    *,
    is_truncated: Callable[[Sequence[int]], bool],
    ends: Container[int],
    gather: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
) -> dict[str, float]:
    """TRL's metrics of truncation over all processes, with stop strings as ends, and the share that a stop string ended.

    ends: tokens that end a completion.
    """
    measured = [[len(ids), is_truncated(ids), ids[-1] not in ends] for ids in completion_ids]
    gathered = gather(torch.tensor(measured, device=device))
    lengths, was_cut, has_no_eos = gathered[:, 0].float(), gathered[:, 1].bool(), gathered[:, 2].bool()
    ended = lengths[~was_cut] if not was_cut.all() else torch.zeros(1)
    return {
        "completions/clipped_ratio": was_cut.float().mean().item(),
        "completions/mean_terminated_length": ended.mean().item(),
        "completions/min_terminated_length": ended.min().item(),
        "completions/max_terminated_length": ended.max().item(),
        STOPPED: (has_no_eos & ~was_cut).float().mean().item(),
    }


def mask_truncated(batch: Batch, *, is_truncated: Callable[[Sequence[int]], bool]) -> None:
    """Take the tokens of truncated completions out of the batch's mask."""
    mask_BT = batch["completion_mask"]
    for row, (ids, length) in enumerate(zip(batch["completion_ids"].tolist(), mask_BT.sum(1).tolist(), strict=True)):
        if is_truncated(ids[:length]):
            mask_BT[row] = 0
