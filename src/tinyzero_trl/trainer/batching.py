"""Micro-batches without work whose result is known to be zero: padding, and rows that carry no gradient.

Rows of the micro-steps that belong to one optimizer step are dealt anew: a *chunk* is what one forward and backward pass computes,
and a micro-step of TRL's runs as many chunks as fall to it, which may be none. Axes: B = rows of this process.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from typing import Any

import torch
from accelerate.utils import DistributedType

from tinyzero_trl.trainer.columns import Batch, join, lengths, take, trim, with_dummy
from tinyzero_trl.trainer.logprobs import MEAN_OVER_ROWS, Logprobs


class Batching(Logprobs):
    """Deals the rows of each optimizer step into chunks of like length and leaves out rows that have no gradient.

    The gradient of the optimizer step is TRL's up to rounding: each row keeps its weight, whichever chunk it is in. A step in which
    no row of any process has a gradient is not taken: weights, momentum and decay stay, the learning rate's schedule goes on.
    """

    _buffered_inputs: list[dict[str, Any]] | None
    """One entry a micro-step: {"chunks": [batch, ...], "has_signal": bool}, or TRL's batch."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._position = 0
        """Micro-steps of the current optimizer step that are done."""
        self._position_step = -1
        self._has_signal = True
        self._earlier_loss: torch.Tensor | None = None
        self._chunk_metrics: list[tuple[int, dict[str, list[float]]]] = []
        super().__init__(*args, **kwargs)

    def _may_drop(self) -> bool:
        # The KL term of the loss has a gradient whatever the advantage.
        return self.batching.skip_constant_groups and self.beta == 0.0

    @property
    def _is_deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before or not self._may_deal():
            return inputs
        slices = self._buffered_inputs
        assert slices is not None
        # So many micro-steps always belong to one optimizer step, however generation and accumulation interlock.
        unit = math.gcd(self.args.gradient_accumulation_steps, self.args.steps_per_generation)
        self._buffered_inputs = []
        for start in range(0, len(slices), unit):
            is_on_policy = self._position + start < self.args.gradient_accumulation_steps
            self._buffered_inputs += self._deal(slices[start : start + unit], is_on_policy=is_on_policy)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _deal(self, slices: list[Batch], *, is_on_policy: bool) -> list[dict[str, Any]]:
        """The rows of these micro-steps in as many micro-steps of chunks, each with what its loss will need."""
        rows = with_dummy(join(slices))
        num_rows = len(rows["completion_ids"]) - 1
        active = torch.ones(num_rows, dtype=torch.bool, device=rows["completion_ids"].device)
        if self._may_drop():
            active = rows["advantages"][:num_rows].reshape(num_rows, -1).ne(0).any(1)
            active &= rows["completion_mask"][:num_rows].ne(0).any(1)
        order, sizes, num_tokens = self.planned(active.nonzero()[:, 0], lengths(rows)[:num_rows])
        per_step = num_rows / len(slices)
        chunks = []
        for part, tokens in zip(torch.split(order, sizes) if sizes else (), num_tokens, strict=True):
            scale = len(part) / per_step if self.loss_type in MEAN_OVER_ROWS else 1.0
            chunks.append(self._chunk_of(rows, part, scale=scale, num_tokens=tokens, is_on_policy=is_on_policy))
        dealt = []
        for step in range(len(slices)):
            # The last micro-step has a chunk if any has: processes exchange gradients in its backward pass.
            mine = chunks[len(chunks) * step // len(slices) : len(chunks) * (step + 1) // len(slices)]
            if not mine and (self.accelerator.num_processes > 1 or self._is_deepspeed):
                dummy = torch.tensor([num_rows], device=order.device)
                mine = [self._chunk_of(rows, dummy, scale=0.0, num_tokens=0, is_on_policy=True)]
            dealt.append({"chunks": mine, "has_signal": bool(chunks)})
        return dealt

    def _chunk_of(self, rows: Batch, part: torch.Tensor, *, scale: float, num_tokens: int, is_on_policy: bool) -> Batch:
        chunk = trim(take(rows, part))
        chunk |= {"scale": scale, "num_tokens": num_tokens, "is_fresh": True, "is_old_known": False}
        if self.beta != 0.0:
            chunk["ref_per_token_logps"] = self.reference_logps_of(chunk)
        corrects = self.use_vllm and self.vllm_importance_sampling_correction
        is_reused = self.num_iterations > 1
        if not is_on_policy or (not self.batching.fold_old_logprobs and (corrects or is_reused)):
            self.find_old_logps(chunk)
        return chunk

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self._position_step != self.state.global_step:
            self._position, self._position_step, self._has_signal = 0, self.state.global_step, False
            self._chunk_metrics = []
        self._earlier_loss = None
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._position += 1
        return loss if self._earlier_loss is None else loss + self._earlier_loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if "chunks" in inputs:
            self._has_signal |= inputs["has_signal"]
            loss = self._loss_of(inputs["chunks"], model, num_items_in_batch)
        else:
            self._has_signal |= self._finds_signal(inputs)
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._metrics["train"]["steps_without_signal"].append(float(not self._has_signal))
            self._log_chunks()
            if self._is_deepspeed and not self._has_signal:
                # DeepSpeed steps inside backward, unless it is told that more is to come. What came is 0.
                self.accelerator.gradient_state._set_sync_gradients(False)
        return loss

    def _finds_signal(self, inputs: Batch) -> bool:
        """Whether a micro-batch that stays as TRL cut it may have a gradient on any process."""
        if not self._may_drop() or self._entropy_bonus_enabled or self.aux_loss_enabled:
            return True
        has_signal = inputs["advantages"].ne(0).any().float()
        return bool(self.accelerator.reduce(has_signal, reduction="sum"))

    def _loss_of(self, chunks: list[Batch], model: Any, num_items_in_batch: Any) -> torch.Tensor:
        """The loss of the last chunk; the backward passes of those before it are done."""
        loss = torch.zeros((), device=self.accelerator.device, requires_grad=True)
        for index, chunk in enumerate(chunks):
            is_last = index == len(chunks) - 1
            with contextlib.nullcontext() if is_last else self._no_sync(model):
                loss = self._chunk_loss(model, chunk, num_items_in_batch)
                if not is_last:
                    self.accelerator.backward(loss, **({"scale_wrt_gas": False} if self._is_deepspeed else {}))
                    earlier = 0.0 if self._earlier_loss is None else self._earlier_loss
                    self._earlier_loss = earlier + loss.detach()
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # fp16's loss scaler cannot pass over a step without gradients: it takes the step, with gradients of 0.
        if not self._has_signal and not self._is_deepspeed and self.accelerator.scaler is None:
            model.zero_grad(set_to_none=True)
        return grad_norm if self._has_signal else 0.0

    def _chunk_loss(self, model: Any, chunk: Batch, num_items_in_batch: Any) -> torch.Tensor:
        whole, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            loss = super().compute_loss(model, chunk, num_items_in_batch=num_items_in_batch)
            self._chunk_metrics.append((chunk["num_tokens"], self._metrics["train"]))
        finally:
            self._metrics["train"] = whole
        return loss * chunk["scale"]

    @contextlib.contextmanager
    def _no_sync(self, model: Any) -> Any:
        """Gradients of what is computed here stay on this process until a later backward pass."""
        synchronises = self.accelerator.sync_gradients
        self.accelerator.gradient_state._set_sync_gradients(False)
        try:
            with contextlib.nullcontext() if self._is_deepspeed else self.accelerator.no_sync(model):
                yield
        finally:
            self.accelerator.gradient_state._set_sync_gradients(synchronises)

    def _log_chunks(self) -> None:
        """One entry a metric and optimizer step: of averages their average by token, of extremes the extreme."""
        entries: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for num_tokens, metrics in self._chunk_metrics:
            for name, values in metrics.items():
                entries[name] += [(num_tokens, value) for value in values if num_tokens and not math.isnan(value)]
        for name, weighted in entries.items():
            if not weighted:
                continue
            values = [value for _, value in weighted]
            if name.endswith(("min", "max")):
                entry = min(values) if name.endswith("min") else max(values)
            else:
                entry = sum(weight * value for weight, value in weighted) / sum(weight for weight, _ in weighted)
            self._metrics["train"][name].append(entry)
        self._chunk_metrics = []
