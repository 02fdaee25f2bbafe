"""Replay: solved groups of the last steps are trained on once more in the place of groups without signal.

Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

from typing import Any

import torch

from tinyzero_trl.config import ReplaySettings
from tinyzero_trl.trainer.batches import Batch, groups_with_signal, joined, rows_in, rows_of, trim

SET_ANEW = ("old_per_token_logps", "importance_sampling_ratio", "is_replayed")
"""Columns that a group is kept without: they are about the policy of the step it is trained in."""


class ReplayBuffer:
    """This process's last solved groups, each put once, newest first, where a batch has groups without signal.

    A kept group has the advantages of its own batch. Its old policy is the one that wrote it, by the log-probabilities it was sampled
    with, so that the ratio the loss clips is pi_now / pi_behaviour. Rows of this batch have the old policy they would have without
    replay; where TRL does not compute it, `old_per_token_logps` is NaN until the loss fills it in (`fill_in_old`).
    """

    def __init__(self, settings: ReplaySettings, *, num_generations: int):
        self.settings = settings
        self.num_generations = num_generations
        self.kept: list[tuple[int, Batch]] = []
        """Step and rows of each group, oldest first, on the CPU."""

    def exchange(self, scored: Batch, *, step: int, pad_token_id: int) -> tuple[Batch, int]:
        """The batch with kept groups in the place of those without signal, and how many; its own solved groups are kept."""
        self.kept = [(at, group) for at, group in self.kept if step - at <= self.settings.max_age]
        has_signal = groups_with_signal(scored["advantages"], num_generations=self.num_generations)
        constant = (~has_signal).nonzero()[:, 0]
        again = [group for _, group in self.kept[::-1][: len(constant)]]
        self.kept = self.kept[: len(self.kept) - len(again)]
        self._keep_solved(scored, has_signal, step=step)
        if again:
            scored = self._with(scored, again, instead_of=constant[: len(again)], pad_token_id=pad_token_id)
        return scored, len(again)

    def state(self) -> list[dict[str, Any]]:
        """The kept groups, to be saved."""
        return [{"step": step, "rows": dict(rows)} for step, rows in self.kept]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Take back what `state` gave."""
        self.kept = [(int(kept["step"]), dict(kept["rows"])) for kept in state]

    def _keep_solved(self, scored: Batch, has_signal: torch.Tensor, *, step: int) -> None:
        is_solved = scored["is_solved"] if "is_solved" in scored else scored["advantages"] > 0
        for group in (has_signal & is_solved.view(len(has_signal), -1).any(1)).nonzero()[:, 0]:
            rows = trim(rows_of(scored, rows_in(group[None], num_generations=self.num_generations)))
            on_cpu = {key: value.cpu().contiguous() for key, value in rows.items() if key not in SET_ANEW}
            self.kept.append((step, on_cpu))
        self.kept = self.kept[-self.settings.num_groups :]

    def _with(self, scored: Batch, groups: list[Batch], *, instead_of: torch.Tensor, pad_token_id: int) -> Batch:
        device, num_rows = scored["completion_ids"].device, len(scored["completion_ids"])
        out = torch.zeros(num_rows, dtype=torch.bool, device=device)
        out[rows_in(instead_of, num_generations=self.num_generations)] = True
        fresh = rows_of(scored, ~out)
        fresh["is_replayed"] = torch.zeros(len(fresh["completion_ids"]), dtype=torch.bool, device=device)
        if "old_per_token_logps" not in fresh:
            fresh["old_per_token_logps"] = torch.full_like(fresh["sampling_per_token_logps"], torch.nan)
        again = []
        for kept in groups:
            group = {key: value.to(device) for key, value in kept.items()}
            group["is_replayed"] = torch.ones(self.num_generations, dtype=torch.bool, device=device)
            group["old_per_token_logps"] = group["sampling_per_token_logps"]
            if "importance_sampling_ratio" in fresh:  # the sampler is the old policy itself here
                shape = fresh["importance_sampling_ratio"].shape[1:]
                width = 1 if shape == (1,) else group["completion_ids"].shape[1]
                group["importance_sampling_ratio"] = torch.ones(self.num_generations, width, device=device)
            again.append(group)
        return scored | joined([fresh, *again], pad_token_id=pad_token_id)


def fill_in_old(batch: Batch, now_BT: torch.Tensor) -> None:
    """Write the policy's log-probabilities of now where the batch's old ones are not known."""
    old_BT = batch["old_per_token_logps"]
    batch["old_per_token_logps"] = torch.where(old_BT.isnan(), now_BT, old_BT)
