"""Bytes on one device, by what they hold and by the phase of a step that holds them. The formulas: docs/memory.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyzero_trl.estimate.activations import (
    checkpointed_activations,
    head_bytes,
    layer_activations,
    passing_activations,
    sampling_bytes,
)
from tinyzero_trl.estimate.workload import ROWS_SAMPLED_AT_ONCE, Plan

GIB = 2**30
CUDA_CONTEXT = int(0.8 * GIB)
"""Kernels, cuBLAS's workspace and handles of one process; 0.5 to 1 GiB by card and driver."""
NCCL_BUFFERS = int(0.4 * GIB)
"""Channels of a process group; only with several processes."""
VLLM_ASLEEP = int(1.5 * GIB)
"""What a colocated vLLM keeps while it sleeps: CUDA graphs, workspaces of its kernels. An assumption: 1 to 3 GiB are reported; not measured by us."""
FRAGMENTATION = 0.05
"""Share of what comes and goes that the caching allocator holds on top."""
DEEPSPEED_BUCKET = 500_000_000
"""Numbers in DeepSpeed's reduce bucket (its default, which our accelerate configs leave)."""
DEEPSPEED_SUBGROUP = 1_000_000_000
"""Numbers of a partition that ZeRO-3 steps at once (sub_group_size, default)."""
NCCL_BUCKET = 2**30
"""generation.broadcast.BUCKET_BYTES, which this module may not import: weights sent at once, up to the parameter that takes them above it."""
LIVE_WEIGHTS = 1_000_000_000
"""stage3_max_live_parameters (default): weights ZeRO-3 keeps gathered at once."""
STATE_BYTES: Mapping[str, float] = {
    "adamw_8bit": 2 + 2 * 4 / 256, "adamw_bnb_8bit": 2 + 2 * 4 / 256, "paged_adamw_8bit": 2 + 2 * 4 / 256,
    "lion_8bit": 1 + 4 / 256, "paged_lion_8bit": 1 + 4 / 256, "sgd": 0.0, "adafactor": 0.01,
}  # fmt: skip
"""Optimizer state a trained weight. 8 bits: one scale in float32 for each 256 numbers (arXiv 2110.02861, sec. 2.1)."""
STATES_OF_WEIGHT = {"lion_32bit": 1, "paged_lion_32bit": 1, "rmsprop": 1, "adagrad": 1}
"""Numbers of state a trained weight, in its own precision; Adam, and what is not named anywhere here, has two."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by phase, and of the host by what is offloaded."""

    phases: Mapping[str, Mapping[str, float]]
    """By phase, in the order of a step: bytes by what holds them."""
    on_host: float
    """Bytes in the host's memory for each process, with offload."""

    def total(self, phase: str) -> float:
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> float:
        return self.total(self.peak_phase)


def memory_of(plan: Plan, *, device_bytes: float | None = None) -> Memory:
    """What one process holds in each phase of a step after the first, when the optimizer has its state.

    device_bytes: of the card, of which colocated vLLM takes its share; None: the least that vLLM needs.
    """
    weights, gradients, states, on_host = _model_states(plan)
    resident = {"weights": weights, "optimizer": states}
    if plan.has_reference_model:
        resident["reference"] = _reference(plan)
    if plan.has_critic:
        resident["value model"] = 16.0 * plan.shape.num_parameters
    if not plan.sharding.is_cpu:
        resident["CUDA"] = CUDA_CONTEXT + (NCCL_BUFFERS if plan.sharding.num_processes > 1 else 0)
    buckets = _buckets(plan)
    if buckets:
        resident["buckets"] = buckets
    if plan.sharding.kind == "deepspeed" and plan.sharding.stage in (1, 3):
        resident["gradients"] = gradients  # a buffer that stays, from the first step on
    vllm = _vllm(plan, device_bytes) if plan.engine == "colocate" else 0.0
    if vllm and not plan.vllm_sleeps:
        resident["vLLM"] = vllm

    copies = 2.0 * plan.shape.linear_weights if plan.is_autocast and plan.sharding.kind == "none" else 0.0
    tokens = plan.rows * plan.length
    phases: dict[str, dict[str, float]] = {"generation": dict(resident)}
    if plan.engine == "transformers":
        phases["generation"] |= _sampling(plan, copies)
    elif vllm:
        phases["generation"]["vLLM"] = vllm
    elif plan.sends_by_nccl:
        shape = plan.shape
        bucket = min(
            float(shape.num_parameters * plan.weight_bytes),
            NCCL_BUCKET + plan.weight_bytes * shape.vocab * shape.hidden,
        )
        phases["generation"]["weights sent"] = bucket
    if plan.has_old_pass or plan.has_reference_pass:
        passing = {
            "activations": passing_activations(plan, tokens),
            "logits": head_bytes(plan, tokens, is_training=False),
        }
        phases["log-probabilities"] = resident | _coming_and_going(plan, passing) | _named("bf16 copies", copies)
    held = checkpointed_activations(plan, tokens) if plan.is_checkpointed else layer_activations(plan, tokens)
    training = {"activations": held, "logits": head_bytes(plan, tokens, is_training=True)}
    phases["forward and backward"] = (
        resident | {"gradients": gradients} | _coming_and_going(plan, training) | _named("bf16 copies", copies)
    )
    phases["optimizer step"] = resident | {"gradients": gradients} | _named("temporary", _step_bytes(plan))
    if vllm and plan.vllm_sleeps and not plan.sharding.is_cpu:
        for phase in phases.keys() - {"generation"}:
            phases[phase]["vLLM asleep"] = VLLM_ASLEEP
    if plan.is_offloaded:
        on_host += states + phases["generation"].pop("reference", 0.0)
        for phase in phases.keys() - {"optimizer step"}:
            del phases[phase]["optimizer"]
    return Memory(phases, on_host)


def _model_states(plan: Plan) -> tuple[float, float, float, float]:
    """Weights, gradients, optimizer state of a device, and what of them is on the host.

    Source: ZeRO (arXiv 1910.02054), sec. 3.1 and 5: 2 + 2 + 12 bytes a weight in mixed precision, each part shared out from its stage on.
    We sum gradients in float32, so that it is 2 + 4 + 12.
    """
    shape, sharding = plan.shape, plan.sharding
    narrow = shape.linear_weights
    weights = plan.linear_bytes * narrow + plan.weight_bytes * (shape.num_parameters - narrow)
    trained_bytes = float(plan.weight_bytes)
    if plan.is_lora:
        # An adapter is float32 (PEFT; trainer/adapter.py on quantized weights), but where DeepSpeed has the masters.
        trained_bytes = 2.0 if sharding.kind == "deepspeed" and plan.weight_bytes == 2 else 4.0
        weights += trained_bytes * plan.trained
    weights /= sharding.share(3)
    gradients = (4.0 if plan.has_float32_sums else trained_bytes) * plan.trained / sharding.share(2)
    if plan.has_float32_sums and sharding.stage == 1 and not sharding.offloads_optimizer:
        gradients += trained_bytes * plan.trained  # of the last micro-batch, beside the sum
    per_weight = STATE_BYTES.get(plan.optimizer, STATES_OF_WEIGHT.get(plan.optimizer, 2) * trained_bytes)
    if sharding.kind == "deepspeed":
        # DeepSpeed holds weights and moments of its optimizer in float32, whatever the model's precision.
        per_weight = 4 + STATE_BYTES.get(plan.optimizer, STATES_OF_WEIGHT.get(plan.optimizer, 2) * 4.0)
    states = per_weight * plan.trained / sharding.share(1)
    on_host = (states if sharding.offloads_optimizer else 0.0) + (weights if sharding.offloads_weights else 0.0)
    if sharding.offloads_optimizer:
        states = 0.0
        if sharding.stage == 3:  # sums of gradients lie where the optimizer is
            gradients, on_host = 0.0, on_host + gradients
    if sharding.offloads_weights:
        weights = 0.0
    return weights + _gathered(plan), gradients, states, on_host


def _gathered(plan: Plan) -> float:
    """Weights that are whole on every device while they are used."""
    shape = plan.shape
    if plan.sharding.kind == "fsdp" and plan.sharding.num_processes > 1:
        # Embedding and head belong to the root, which stays gathered; one layer works while the next arrives.
        return plan.compute_bytes * (shape.embedding_weights + 2.0 * shape.layer_weights)
    if plan.sharding.kind == "deepspeed" and plan.sharding.stage == 3 and plan.sharding.num_processes > 1:
        return plan.weight_bytes * min(shape.num_parameters, LIVE_WEIGHTS)
    return 0.0


def _reference(plan: Plan) -> float:
    return plan.weight_bytes * plan.shape.num_parameters / plan.sharding.share(3)


def _buckets(plan: Plan) -> float:
    """Copies of gradients on their way between devices."""
    if plan.sharding.kind == "deepspeed":
        return plan.weight_bytes * min(DEEPSPEED_BUCKET, plan.trained)
    # accelerate wraps what its launcher started on a GPU, a single process too; on a CPU several alone.
    if plan.sharding.kind == "none" and (plan.sharding.num_processes > 1 or not plan.sharding.is_cpu):
        return (4.0 if plan.is_lora else plan.weight_bytes) * plan.trained  # DDP's buckets hold all of them
    return 0.0


def _sampling(plan: Plan, copies: float) -> dict[str, float]:
    """Our sampler at its last token, all rows still there."""
    rows = min(plan.generated_rows, ROWS_SAMPLED_AT_ONCE)
    # Rotated keys have the precision of the residual stream, values that of matrix products.
    of_a_token = plan.shape.layers * plan.shape.kv_width * (plan.residual_bytes + plan.compute_bytes)
    cache = float(rows * plan.length * of_a_token)
    gathered = 0.0
    if plan.sharding.stage == 3 and plan.sharding.num_processes > 1:
        gathered = plan.weight_bytes * plan.shape.num_parameters  # the whole model, on every device
    drawing = sampling_bytes(plan, rows)
    reading = passing_activations(plan, rows * plan.prompt)
    # Prompts are read before the cache has grown; either that or the last token is the peak.
    ends_higher = cache > reading + cache * plan.prompt / plan.length
    work = (
        {"KV cache": cache} if ends_higher else {"KV cache": cache * plan.prompt / plan.length, "activations": reading}
    )
    work["logits"] = drawing
    return _coming_and_going(plan, work) | _named("gathered weights", gathered) | _named("bf16 copies", copies)


def _vllm(plan: Plan, device_bytes: float | None) -> float:
    """What a colocated engine takes: the share it is told to, or else its weights and cache for all rows.

    Source: PagedAttention (arXiv 2309.06180), sec. 3: 2 x layers x KV width numbers a token, in blocks without waste worth counting.
    """
    if device_bytes is not None:
        return plan.vllm_share * device_bytes
    weights = 2.0 * plan.shape.num_parameters / plan.vllm_parallel
    of_a_token = 2 * plan.shape.layers * plan.shape.kv_width * 2 / plan.vllm_parallel
    return weights + plan.generated_rows * plan.vllm_parallel * plan.length * of_a_token


def _step_bytes(plan: Plan) -> float:
    """What the optimizer needs beside its state while it steps."""
    if plan.sharding.offloads_optimizer:
        return 0.0
    if plan.sharding.kind == "deepspeed":
        if plan.has_float32_sums and plan.sharding.stage == 1:
            return 0.0  # the optimizer reads the sums where they are
        partition = plan.trained / plan.sharding.share(1)
        # This partition's gradients in one piece, in float32.
        return 4.0 * (min(partition, DEEPSPEED_SUBGROUP) if plan.sharding.stage == 3 else partition)
    if plan.optimizer in ("adamw_torch", "adamw_hf"):
        return (4.0 if plan.is_lora else plan.weight_bytes) * plan.trained / plan.sharding.share(3)  # foreach's roots
    return 0.0


def _coming_and_going(plan: Plan, work: Mapping[str, float]) -> dict[str, float]:
    factor = 1.0 if plan.sharding.is_cpu else 1.0 + FRAGMENTATION
    return {name: factor * value for name, value in work.items()}


def _named(name: str, value: float) -> dict[str, float]:
    return {name: value} if value else {}
