"""One step ahead: while a batch is trained, a server already generates the next one, by weights that are one update older.

    step k:     train on batch k                 train on batch k + 1
    server:     batch k + 1 by weights k         batch k + 2 by weights k + 1

The weights of step k are sent when batch k is there and before batch k + 1 is requested, so no weights change while anything is generated.
Axes: see tinyzero_trl.algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tinyzero_trl.trainer.batches import Batch


@dataclass(frozen=True)
class Drawn:
    """This process's completions of a batch that was generated ahead."""

    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    """Log-probability of each token under the policy that drew it."""
    weights_step: int
    """Optimizer steps behind that policy."""
    seconds: float
    """Time of the server."""
    num_faults: int
    """Failures of the server."""


@dataclass
class NextBatch:
    """The batch that comes after the one being trained."""

    problems: list[int]
    """Row numbers of its problems, over all processes."""
    number: int
    """Its number among the training batches, from which its seeds follow."""
    drawn: Drawn | None = None
    """None while it is in flight, and where it was lost with its server: it is then generated when its turn comes, by newer weights."""

    def state(self) -> dict[str, Any]:
        """The batch, to be saved; log-probabilities in float32, in which they are trained on."""
        saved: dict[str, Any] = {"problems": self.problems, "number": self.number}
        if self.drawn is None:
            return saved
        ids, logprobs = self.drawn.completion_ids, self.drawn.logprobs
        return saved | {
            "lengths": torch.tensor([len(row) for row in ids]),
            "completion_ids": torch.tensor([token for row in ids for token in row]),
            "logprobs": torch.tensor([logprob for row in logprobs for logprob in row]),
            "weights_step": self.drawn.weights_step,
            "seconds": self.drawn.seconds,
            "num_faults": self.drawn.num_faults,
        }

    @classmethod
    def of_state(cls, saved: dict[str, Any]) -> NextBatch:
        """The batch that `state` gave."""
        batch = cls(list(saved["problems"]), saved["number"])
        if "lengths" in saved:
            lengths = saved["lengths"].tolist()
            parts = (torch.split(saved[key], lengths) for key in ("completion_ids", "logprobs"))
            ids, logprobs = ([row.tolist() for row in part] for part in parts)
            batch.drawn = Drawn(ids, logprobs, saved["weights_step"], saved["seconds"], saved["num_faults"])
        return batch


def take_sampler_as_old(scored: Batch) -> None:
    """Make the policy that drew each token the old policy of its ratio, by the log-probabilities that came with it.

    The ratio of PPO is r = pi(a|s) / pi_old(a|s), where pi_old collected the data, and its objective is
    E_old[min(r A, clip(r, 1 - epsilon, 1 + epsilon) A)] (Schulman et al. 2017, arXiv 1707.06347, eq. 6 and 7). Where nothing is
    clipped, a token's gradient, given the tokens before it, is E_pi[A grad log pi] whatever pi_old was: one by older weights teaches what
    one by the weights of now would, with more variance.
    TRL would take the policy of the moment when training on the batch begins for pi_old, and weigh the loss by its importance_sampling_ratio,
    pi_old / pi_sampler. With the sampler as pi_old that weight is 1: its part is in r, where the clip bounds it.
    """
    scored["old_per_token_logps"] = scored["sampling_per_token_logps"]
    if "importance_sampling_ratio" in scored:
        scored["importance_sampling_ratio"] = torch.ones_like(scored["importance_sampling_ratio"])
