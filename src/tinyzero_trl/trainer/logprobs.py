"""Log-probabilities computed when it is known which are needed, and read off the loss's own forward pass where they can be.

Axes: B = this process's rows, C = completion tokens, R = processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.training_args import OptimizerNames
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from tinyzero_trl.config import BatchingSettings
from tinyzero_trl.trainer.columns import Batch, lengths, take, trim
from tinyzero_trl.trainer.importance import importance_ratio, summary
from tinyzero_trl.trainer.packing import Packed
from tinyzero_trl.trainer.plan import chunk_sizes

MEAN_OVER_ROWS = ("grpo", "dr_grpo", "sapo", "luspo")
"""Losses that divide by the number of rows of a micro-batch."""
SUM_OVER_TOKENS = ("dapo", "cispo", "vespo")
"""Losses that divide by a token count of the whole generation batch. bnpo divides by the micro-batch's: its rows stay where TRL has them."""


class Logprobs(GRPOTrainer):
    """Defers TRL's passes for old and reference log-probabilities; folds the old ones into the loss's forward pass.

    A chunk (trainer/batching.py) says with `is_old_known` whether it holds `old_per_token_logps`; where it does not, the policy has not
    changed since its rollouts, and the loss's own log-probabilities are the old ones.
    """

    batching: BatchingSettings
    vllm_importance_sampling_correction: bool

    def __init__(self, *args: Any, **kwargs: Any):
        self._is_deferring = False
        self._chunk: Batch | None = None
        """The chunk whose loss is being computed."""
        super().__init__(*args, **kwargs)

    def _may_deal(self) -> bool:
        """Whether rows may be dealt into chunks of ours; where the loss has terms over a whole micro-batch, TRL's slices stay."""
        settings = self.batching
        return (
            (
                settings.skip_constant_groups
                or settings.sort_by_length
                or settings.fold_old_logprobs
                or settings.packing
                or settings.max_tokens_per_microbatch is not None
            )
            and not self._is_vlm
            and self.loss_type in (*MEAN_OVER_ROWS, *SUM_OVER_TOKENS)
            and self.top_entropy_quantile == 1.0
            and not self._entropy_bonus_enabled
            and not self.aux_loss_enabled
            and not self.is_fsdp_enabled
            and self.args.optim not in (OptimizerNames.LOMO, OptimizerNames.ADALOMO)  # they step inside backward
            and getattr(self.accelerator, "parallelism_config", None) is None
        )

    def reference_logps(self, batch: Batch) -> torch.Tensor:
        """Log-probabilities of the completions' tokens under the reference model; [B, C], 0 at padding. Every process must call it."""
        return self._in_chunks(batch, self.reference_logps_of)

    def policy_logps(self, batch: Batch) -> torch.Tensor:
        """The same under the policy as it is now."""
        return self._in_chunks(batch, self.policy_logps_of)

    def policy_logps_of(self, chunk: Batch) -> torch.Tensor:
        """Of the chunk's completion tokens under the policy as it is now, [B, C], in one pass without gradient."""
        return self._logps_of(self.model, chunk)

    def reference_logps_of(self, chunk: Batch) -> torch.Tensor:
        """The same under the reference model, or under the policy without its adapter."""
        if self.ref_model is not None:
            return self._logps_of(self.ref_model, chunk)
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._logps_of(self.model, chunk)

    def planned(self, rows: torch.Tensor, sizes_B2: torch.Tensor) -> tuple[torch.Tensor, list[int], list[int]]:
        """The rows in the order to compute them in, how many go in each chunk, and the completion tokens of each over all processes.

        rows: this process's, by number; a process that has fewer than another gets the number B, a dummy, for each that it lacks.
        sizes_B2: prompt and completion columns of all B rows. Chunks have as many rows on every process, planned on the longest of each place.
        """
        device = self.accelerator.device
        if self.batching.sort_by_length:
            rows = rows[sizes_B2[rows].sum(1).argsort(descending=True, stable=True)]
        most = int(self.accelerator.gather(torch.tensor([len(rows)], device=device)).max())
        if not most:
            return rows, [], []
        padded = torch.zeros(most, 2, dtype=torch.long, device=device)
        padded[: len(rows)] = sizes_B2[rows]
        gathered_R2 = self.accelerator.gather(padded).view(-1, most, 2)
        budget = self.batching.max_tokens_per_microbatch
        if budget is None:
            # What TRL's own micro-batches of these rows take at least, so that memory never grows.
            widest = int(self.accelerator.gather(sizes_B2.amax(0)[None]).amax(0).sum())
            budget = self.args.per_device_train_batch_size * widest
        longest = gathered_R2.amax(0)
        sizes = chunk_sizes(
            longest[:, 0].tolist(), longest[:, 1].tolist(), budget=budget, is_packed=self.batching.packing
        )
        order = torch.cat([rows, rows.new_full((most - len(rows),), len(sizes_B2))])
        num_tokens = gathered_R2[:, :, 1].sum(0)
        return order, sizes, [int(part.sum()) for part in torch.split(num_tokens, sizes)]

    def _in_chunks(self, batch: Batch, logps_of: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
        num_rows = len(batch["completion_ids"])
        order, sizes, _ = self.planned(torch.arange(num_rows, device=batch["completion_ids"].device), lengths(batch))
        logps_BC = torch.zeros(batch["completion_ids"].shape, device=batch["completion_ids"].device)
        keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        for rows in torch.split(order, sizes):
            part = trim(take({key: batch[key] for key in keys}, rows))
            logps_BC[rows, : part["completion_ids"].size(1)] = logps_of(part).float()
        return logps_BC

    @torch.no_grad()
    def _logps_of(self, model: Any, chunk: Batch) -> torch.Tensor:
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logps_BC, _, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([chunk["prompt_ids"], chunk["completion_ids"]], dim=1),
                torch.cat([chunk["prompt_mask"], chunk["completion_mask"]], dim=1),
                chunk["completion_ids"].size(1),
            )
        return logps_BC

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training or not self._may_deal():
            return super()._generate_and_score_completions(inputs)
        corrects, self._is_deferring = self.vllm_importance_sampling_correction, True
        self.vllm_importance_sampling_correction = False
        try:
            scored = super()._generate_and_score_completions(inputs)
        finally:
            self.vllm_importance_sampling_correction, self._is_deferring = corrects, False
        for placeholder in ("old_per_token_logps", "ref_per_token_logps"):
            scored.pop(placeholder, None)
        return scored

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int, **options: Any
    ) -> Any:
        if self._is_deferring:
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        if self.batching.packing and not self._is_vlm:
            model = Packed(model)
        computed = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, **options
        )
        if self._chunk is not None:
            self._fold(self._chunk, computed[0].detach())
        return computed

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        self._chunk = inputs if "is_old_known" in inputs else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._chunk = None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        # Batching may have told DeepSpeed that this is no boundary. All others, and the loop, go by the flag as it was.
        synchronises = self.accelerator.sync_gradients
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.accelerator.gradient_state._set_sync_gradients(synchronises)
        return loss

    def find_old_logps(self, chunk: Batch) -> None:
        """Compute the chunk's old log-probabilities now, for a loss that comes after the policy has changed."""
        self._keep_old(chunk, self.policy_logps_of(chunk))

    def _keep_old(self, chunk: Batch, now_BC: torch.Tensor) -> None:
        if "is_replayed" in chunk:  # those rows are another policy's, which wrote down what they were to it
            now_BC = torch.where(chunk["is_replayed"].bool().unsqueeze(1), chunk["old_per_token_logps"], now_BC)
        chunk["old_per_token_logps"], chunk["is_old_known"] = now_BC, True

    def _fold(self, chunk: Batch, now_BC: torch.Tensor) -> None:
        """What TRL's loss reads after its forward pass, and computes in a pass of its own before."""
        if not chunk["is_fresh"]:
            return
        chunk["is_fresh"] = False
        if not chunk["is_old_known"] and (self.num_iterations > 1 or "is_replayed" in chunk):
            self._keep_old(chunk, now_BC)
        if "sampling_per_token_logps" not in chunk:
            return
        old_BC = chunk.get("old_per_token_logps", now_BC)
        mask_BC = chunk["completion_mask"] * chunk.get("tool_mask", 1)
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        if corrects:
            chunk["importance_sampling_ratio"] = importance_ratio(
                old_BC,
                chunk["sampling_per_token_logps"],
                mask_BC,
                mode=self.vllm_importance_sampling_mode,
                low=self.vllm_importance_sampling_clip_min,
                high=self.vllm_importance_sampling_clip_max,
            )
        self._measure_sampling(chunk, (old_BC - chunk["sampling_per_token_logps"]).abs(), mask_BC.bool())

    def _measure_sampling(self, chunk: Batch, gap_BC: torch.Tensor, mask_BC: torch.Tensor) -> None:
        """TRL's sampling/* metrics, weighted by token, over the tokens whose sampling log-probability is known.

        Dummies have none. Rows that came again are none of this step's sampling: their old policy is their sampler.
        """
        known_BC = mask_BC & ~gap_BC.isnan()
        if "is_replayed" in chunk:
            known_BC = known_BC & ~chunk["is_replayed"].bool()[:, None]
        values = {"sampling_logp_difference": gap_BC[known_BC]}
        if "importance_sampling_ratio" in chunk:
            ratio = chunk["importance_sampling_ratio"]
            values["importance_sampling_ratio"] = (
                ratio[known_BC] if ratio.shape == mask_BC.shape else ratio[known_BC.any(1)].flatten()
            )
        local = torch.stack([summary(value) for value in values.values()])
        totals = self.accelerator.gather(local[None])
        metrics = self._metrics["train"]
        for index, name in enumerate(values):
            total, count = totals[:, index, 0].sum().item(), totals[:, index, 1].sum().item()
            if not count:
                continue
            metrics[f"sampling/{name}/mean"].append(total / count)
            metrics[f"sampling/{name}/max"].append(totals[:, index, 3].max().item())
            if name == "importance_sampling_ratio":
                metrics[f"sampling/{name}/min"].append(totals[:, index, 2].min().item())
