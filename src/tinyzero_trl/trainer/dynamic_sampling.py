"""Groups without signal are replaced by groups of fresh prompts before anything is trained on."""

from __future__ import annotations

from typing import Any

import torch

from tinyzero_trl.trainer.merging import groups_with_signal, joined, num_loss_tokens, rows_in, rows_of
from tinyzero_trl.trainer.problems import Problems


class DynamicSampling(Problems):
    """After a batch is scored, up to `dynamic_sampling_rounds` more are generated for the groups in it that teach nothing.

    Each process fills its own groups, and all generate equally many, as many as the one that misses most; groups with signal beyond what is
    missing are dropped. Groups that stay without signal after the last round are trained on as ever, that is, not at all.
    Metrics are those of the first round, which is a fair sample of the problems; what the rounds add is in sampling/*, in the token counts and
    in the rollouts' shards, a part for each round.
    Source: DAPO (arXiv 2503.14476), eq. 11. There, prompts are drawn until the batch is full.
    """

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        scored: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training or not self.dynamic_sampling_rounds or self._is_vlm:
            return scored
        first_round = {name: len(values) for name, values in self._metrics["train"].items()}
        size, num_processes = self.num_generations, self.accelerator.num_processes
        num_groups = len(inputs) // size
        has_signal = groups_with_signal(scored["advantages"], num_generations=size)
        parts = [rows_of(scored, rows_in(has_signal.nonzero()[:, 0], num_generations=size))]
        num_filled, num_rounds, num_generated = int(has_signal.sum()), 0, num_groups
        seen = set(self.problems_of(inputs))
        while num_rounds < self.dynamic_sampling_rounds:
            most_missing = int(self._over_processes(num_groups - num_filled).max())
            problems = self.fresh_problems(most_missing * num_processes, exclude=seen)
            num_each = len(problems) // num_processes
            if num_each == 0:  # nothing is missing, or every problem there is has been tried
                break
            num_rounds += 1
            num_generated += num_each
            seen.update(problems)
            fresh = super()._generate_and_score_completions(self.my_rows(problems, num_rows=num_each * size))
            good = groups_with_signal(fresh["advantages"], num_generations=size).nonzero()[:, 0]
            good = good[: num_groups - num_filled]
            parts.append(rows_of(fresh, rows_in(good, num_generations=size)))
            num_filled += len(good)
        if num_rounds:
            left = (~has_signal).nonzero()[: num_groups - num_filled, 0]
            parts.append(rows_of(scored, rows_in(left, num_generations=size)))
            scored = scored | joined(parts, pad_token_id=self._tokenizer.pad_token_id)
            scored["num_items_in_batch"] = self._over_processes(num_loss_tokens(scored)).sum()
        metrics = self._metrics["train"]
        for name in list(metrics):
            metrics[name] = metrics[name][: first_round.get(name, 0)]
            if not metrics[name]:  # nothing to say of the first round; TRL would log it as empty
                del metrics[name]
        num_replaced = num_filled - int(has_signal.sum())
        metrics["sampling/rounds"].append(num_rounds)
        metrics["sampling/groups_generated"].append(num_generated * num_processes)
        metrics["sampling/groups_replaced"].append(int(self._over_processes(num_replaced).sum()))
        return scored

    def _over_processes(self, number: int | torch.Tensor) -> torch.Tensor:
        """A number of this process, beside those of the others."""
        gathered: torch.Tensor = self.accelerator.gather(torch.as_tensor(number, device=self.accelerator.device)[None])
        return gathered
