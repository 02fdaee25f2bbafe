"""Solved groups of the last steps, trained on once more in the place of groups without signal.

Axes: B = this process's rows, C = completion tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from tinyzero_trl.config import ReplaySettings
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.trainer.columns import Batch, trim
from tinyzero_trl.trainer.merging import groups_with_signal, joined, num_loss_tokens, rows_in, rows_of
from tinyzero_trl.trainer.problems import Problems

SET_ANEW = ("old_per_token_logps", "importance_sampling_ratio", "is_replayed")
"""Columns that a group is kept without: they are about the policy of the step it is trained in."""


class Replay(Problems):
    """Keeps each process's last solved groups and puts them, newest first and each once, where a batch has groups without signal.

    A kept group has the advantages of its own batch, and as old policy the one that wrote it: the log-probabilities it was sampled with, so that
    the ratio the loss clips is pi_now / pi_behaviour. Rows of this batch have the old policy they would have without replay.
    Rows whose old policy is the current one, which TRL does not compute, stand as NaN in `old_per_token_logps` until the loss knows it.
    """

    replay_settings: ReplaySettings

    def __init__(self, *args: Any, **kwargs: Any):
        self._kept: list[tuple[int, Batch]] = []
        """Step and rows of each group, oldest first, on the CPU."""
        self._awaits_old: Batch | None = None
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training or not self.replay_settings.num_groups or self._is_vlm:
            return scored
        if "sampling_per_token_logps" not in scored:
            raise ConfigError(
                "replay.num_groups needs the log-probabilities completions were sampled with, which this generation does not give"
            )
        step = self.state.global_step
        self._kept = [(at, group) for at, group in self._kept if step - at <= self.replay_settings.max_age]
        constant = (~groups_with_signal(scored["advantages"], num_generations=self.num_generations)).nonzero()[:, 0]
        again = [group for _, group in self._kept[::-1][: len(constant)]]
        self._kept = self._kept[: len(self._kept) - len(again)]
        self._keep_solved(scored, step=step)
        if again:
            scored = self._with(scored, again, instead_of=constant[: len(again)])
        totals = self.accelerator.gather(
            torch.stack([num_loss_tokens(scored), torch.tensor(len(again), device=self.accelerator.device)])[None]
        ).sum(0)
        scored["num_items_in_batch"] = totals[0]
        self._metrics["train"]["replay/groups"].append(int(totals[1]))
        return scored

    def _keep_solved(self, scored: Batch, *, step: int) -> None:
        size = self.num_generations
        has_signal = groups_with_signal(scored["advantages"], num_generations=size)
        is_solved = scored["is_solved"] if "is_solved" in scored else scored["advantages"] > 0
        for group in (has_signal & is_solved.view(len(has_signal), -1).any(1)).nonzero()[:, 0]:
            rows = trim(rows_of(scored, rows_in(group[None], num_generations=size)))
            self._kept.append(
                (step, {key: value.cpu().contiguous() for key, value in rows.items() if key not in SET_ANEW})
            )
        self._kept = self._kept[-self.replay_settings.num_groups :]

    def _with(self, scored: Batch, groups: list[Batch], *, instead_of: torch.Tensor) -> Batch:
        """The batch with kept groups in the place of some of its own."""
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
        return scored | joined([fresh, *again], pad_token_id=self._tokenizer.pad_token_id)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._awaits_old = inputs if "is_replayed" in inputs else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._awaits_old = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._awaits_old is not None:  # TRL reads the old log-probabilities after this call
            old_BC = self._awaits_old["old_per_token_logps"]
            self._awaits_old["old_per_token_logps"] = torch.where(old_BC.isnan(), result[0].detach(), old_BC)
        return result

    def resume_state(self) -> dict[str, Any]:
        return {**super().resume_state(), "replay": [{"step": step, "rows": dict(rows)} for step, rows in self._kept]}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        super().load_resume_state(state)
        self._kept = [(int(kept["step"]), dict(kept["rows"])) for kept in state["replay"]]
