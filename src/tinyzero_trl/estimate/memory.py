"""Counts the bytes on one device by their content and by the phase of a step. The formulas: docs/memory.md.

Activations and logits are counted tensor by tensor as transformers' Llama and Qwen2 keep them for the backward pass. Korthikanti et al.
(arXiv 2205.05198, sec. 4.1, eq. 1-2) count s b h (34 + 5 a s / h) bytes for a layer of GPT with dropout and GELU in 16 bits; the same
count is made here for RMSNorm, rotary grouped-query attention that keeps no score matrix, and gated MLPs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyzero_trl.estimate.workload import BYTES_ON_A_CPU, ROWS_ON_A_CPU, ROWS_SAMPLED_AT_ONCE, Workload

GIB = 2**30
CUDA_CONTEXT = int(0.8 * GIB)
"""Kernels, cuBLAS's workspace and handles of one process; 0.5 to 1 GiB by card and driver."""
NCCL_BUFFERS = int(0.4 * GIB)
"""Channels of a process group; only with several processes."""
VLLM_ASLEEP = int(1.5 * GIB)
"""CUDA graphs and workspaces of kernels that a sleeping colocated vLLM keeps. An assumption: 1 to 3 GiB are reported; not measured by us."""
FRAGMENTATION = 0.05
"""Share of temporary memory that the caching allocator holds in addition."""
DEEPSPEED_BUCKET = 500_000_000
"""Numbers in DeepSpeed's reduce bucket (its default, which our accelerate configs leave)."""
DEEPSPEED_SUBGROUP = 1_000_000_000
"""Numbers of a partition that ZeRO-3 steps at once (sub_group_size, default)."""
LIVE_WEIGHTS = 1_000_000_000
"""stage3_max_live_parameters (default): weights ZeRO-3 keeps gathered at once."""
NCCL_BUCKET = 2**30
"""Weights sent at once: generation.broadcast.BUCKET_BYTES, which this module may not import. The parameter that exceeds it is sent too."""
STATE_BYTES: Mapping[str, float] = {
    "adamw_8bit": 2 + 2 * 4 / 256, "adamw_bnb_8bit": 2 + 2 * 4 / 256, "paged_adamw_8bit": 2 + 2 * 4 / 256,
    "lion_8bit": 1 + 4 / 256, "paged_lion_8bit": 1 + 4 / 256, "sgd": 0.0, "adafactor": 0.01,
}  # fmt: skip
"""Bytes of optimizer state for a trained weight. 8 bits: one scale in float32 for each 256 numbers (arXiv 2110.02861, sec. 2.1)."""
STATES_OF_WEIGHT = {"lion_32bit": 1, "paged_lion_32bit": 1, "rmsprop": 1, "adagrad": 1}
"""Numbers of state for a trained weight, in its own precision; Adam, and any optimizer not named here, has two."""
TOKEN_TILE, VOCABULARY_TILE = 4096, 32768
"""Size of the logits TRL has at once (kernels/chunked_logprob.py: TOKEN_CHUNK_SIZE; trainer/utils.py)."""
TILES_WITHOUT_TRITON = {False: 3, True: 6}
"""Float32 copies of a tile that TRL's torch fallback holds at its peak: without, with a backward pass."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device by phase, and of the host by what is offloaded."""

    phases: Mapping[str, Mapping[str, float]]
    """Bytes by content, by phase in the order of a step."""
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


def memory_of(run: Workload, *, device_bytes: float | None = None) -> Memory:
    """The memory of one process in each phase of a step after the first, when the optimizer has its state.

    device_bytes: memory of the card, of which colocated vLLM takes its share; None: vLLM takes the least that it needs.
    """
    shape, sharding, tokens = run.shape, run.sharding, run.rows * run.length
    weights, gradients, states, on_host = _model_states(run)
    vllm = _vllm_bytes(run, device_bytes) if run.engine == "colocate" else 0.0
    cuda = 0 if sharding.is_cpu else CUDA_CONTEXT + (NCCL_BUFFERS if sharding.num_processes > 1 else 0)
    reference = run.weight_bytes * shape.num_parameters / sharding.share(3) if run.has_reference_model else 0.0
    resident = {
        "weights": weights,
        "optimizer": states,
        "reference": reference,
        "value model": 16.0 * shape.num_parameters if run.has_critic else 0.0,
        "CUDA": cuda,
        "buckets": _bucket_bytes(run),
        # DeepSpeed keeps its buffer of gradients from the first step on.
        **({"gradients": gradients} if sharding.kind == "deepspeed" and sharding.stage in (1, 3) else {}),
        "vLLM": 0.0 if run.vllm_sleeps else vllm,
    }
    copies = {"bf16 copies": 2.0 * shape.linear_weights if run.is_autocast and sharding.kind == "none" else 0.0}
    factor = 1.0 if sharding.is_cpu else 1.0 + FRAGMENTATION

    def passing(activations: float, *, is_training: bool) -> dict[str, float]:
        logits = head_bytes(run, tokens, is_training=is_training)
        return {"activations": factor * activations, "logits": factor * logits} | copies

    phases = {"generation": resident | {"vLLM": vllm}}
    if run.engine == "transformers":
        phases["generation"] |= {name: factor * held for name, held in _sampling(run).items()}
        phases["generation"] |= {"gathered weights": _gathered_to_sample(run)} | copies
    elif run.sends_by_nccl:
        last = run.weight_bytes * shape.vocab * shape.hidden
        phases["generation"]["weights sent"] = min(run.weight_bytes * shape.num_parameters, NCCL_BUCKET + last)
    if run.has_old_pass or run.has_reference_pass:
        phases["log-probabilities"] = resident | passing(passing_activations(run, tokens), is_training=False)
    training = resident | {"gradients": gradients}
    phases["forward and backward"] = training | passing(training_activations(run, tokens), is_training=True)
    phases["optimizer step"] = training | {"temporary": _step_bytes(run)}
    if vllm and run.vllm_sleeps and not sharding.is_cpu:
        for phase in phases.keys() - {"generation"}:
            phases[phase]["vLLM asleep"] = VLLM_ASLEEP
    if run.is_offloaded:
        on_host += states + phases["generation"].pop("reference")
        for phase in phases.keys() - {"optimizer step"}:
            del phases[phase]["optimizer"]
    always = ("weights", "optimizer", "gradients")
    shown = {
        phase: {name: held for name, held in holds.items() if held or name in always} for phase, holds in phases.items()
    }
    return Memory(shown, on_host)


def _model_states(run: Workload) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients and optimizer state on a device, and of all these on the host.

    Source: ZeRO (arXiv 1910.02054), sec. 3.1 and 5: 2 + 2 + 12 bytes a weight in mixed precision, each part divided among processes from its stage on.
    We sum gradients in float32, so that it is 2 + 4 + 12.
    """
    shape, sharding = run.shape, run.sharding
    weights = run.linear_bytes * shape.linear_weights
    weights += run.weight_bytes * (shape.num_parameters - shape.linear_weights)
    weights = (weights + (run.trained_bytes * run.trained if run.is_lora else 0)) / sharding.share(3)
    gradients = (4.0 if run.has_float32_sums else run.trained_bytes) * run.trained / sharding.share(2)
    if run.has_float32_sums and sharding.stage == 1 and not sharding.offloads_optimizer:
        gradients += run.trained_bytes * run.trained  # those of the last micro-batch, beside the sum
    # DeepSpeed holds weights and moments of its optimizer in float32, whatever the model's precision.
    masters, width = (4.0, 4.0) if sharding.kind == "deepspeed" else (0.0, run.trained_bytes)
    per_weight = masters + STATE_BYTES.get(run.optimizer, STATES_OF_WEIGHT.get(run.optimizer, 2) * width)
    states, on_host = per_weight * run.trained / sharding.share(1), 0.0
    if sharding.offloads_optimizer:
        states, on_host = 0.0, states
        if sharding.stage == 3:  # sums of gradients are where the optimizer is
            gradients, on_host = 0.0, on_host + gradients
    if sharding.offloads_weights:
        weights, on_host = 0.0, on_host + weights
    return weights + _gathered(run), gradients, states, on_host


def _gathered(run: Workload) -> float:
    """Bytes of weights that are gathered on every device while they are used."""
    shape, sharding = run.shape, run.sharding
    if sharding.kind == "fsdp" and sharding.num_processes > 1:
        # The root, with embedding and head, stays gathered; one layer computes while the next is gathered.
        return run.compute_bytes * (shape.embedding_weights + 2.0 * shape.layer_weights)
    if sharding.kind == "deepspeed" and sharding.stage == 3 and sharding.num_processes > 1:
        return run.weight_bytes * min(shape.num_parameters, LIVE_WEIGHTS)
    return 0.0


def _gathered_to_sample(run: Workload) -> float:
    """Bytes of the whole model, which our sampler gathers on every device."""
    is_gathered = run.sharding.stage == 3 and run.sharding.num_processes > 1
    return run.weight_bytes * run.shape.num_parameters if is_gathered else 0.0


def _bucket_bytes(run: Workload) -> float:
    """Bytes of copies of gradients that are sent between devices."""
    if run.sharding.kind == "deepspeed":
        return run.weight_bytes * min(DEEPSPEED_BUCKET, run.trained)
    # accelerate wraps the model in DDP on a GPU also for a single process, on a CPU only for several.
    is_ddp = run.sharding.kind == "none" and (run.sharding.num_processes > 1 or not run.sharding.is_cpu)
    return run.trained_bytes * run.trained if is_ddp else 0.0  # DDP's buckets hold all gradients


def _step_bytes(run: Workload) -> float:
    """Bytes that the optimizer needs beside its state while it steps."""
    sharding = run.sharding
    if sharding.kind != "deepspeed":
        has_roots = run.optimizer in ("adamw_torch", "adamw_hf") and not sharding.offloads_optimizer
        return run.trained_bytes * run.trained / sharding.share(3) if has_roots else 0.0  # foreach's square roots
    if sharding.offloads_optimizer or (run.has_float32_sums and sharding.stage == 1):
        return 0.0  # it runs on the host, or reads the sums in place
    partition = run.trained / sharding.share(1)
    # This partition's gradients in one piece, in float32.
    return 4.0 * (min(partition, DEEPSPEED_SUBGROUP) if sharding.stage == 3 else partition)


def _sampling(run: Workload) -> dict[str, float]:
    """Bytes of our sampler at its last token with all rows, or while it reads the prompts, whichever is more."""
    # Rotated keys have the precision of the residual stream, values that of matrix products.
    of_a_token = run.shape.layers * run.shape.kv_width * (run.weight_bytes + run.compute_bytes)
    is_wide = run.sharding.is_cpu and ROWS_ON_A_CPU * run.length * of_a_token <= BYTES_ON_A_CPU
    rows = min(run.generated_rows, ROWS_ON_A_CPU if is_wide else ROWS_SAMPLED_AT_ONCE)
    cache = float(rows * run.length * of_a_token)
    of_prompts = cache * run.prompt / run.length
    reading = passing_activations(run, rows * run.prompt)
    # Logits, log-probabilities and probabilities (float32) and their running sum (float64).
    narrow = run.compute_bytes if run.compute_bytes == 2 else 0
    logits = {"logits": float(rows * run.shape.vocab * (narrow + 4 + 4 + 4 + 8))}
    ends_higher = cache > reading + of_prompts
    return ({"KV cache": cache} if ends_higher else {"KV cache": of_prompts, "activations": reading}) | logits


def _vllm_bytes(run: Workload, device_bytes: float | None) -> float:
    """Bytes of a colocated engine: its share of the device, or, if that is not known, its weights and cache for all rows.

    Source: PagedAttention (arXiv 2309.06180), sec. 3: 2 x layers x KV width numbers a token, in blocks without waste worth counting.
    """
    if device_bytes is not None:
        return run.vllm_share * device_bytes
    of_a_token = 2 * run.shape.layers * run.shape.kv_width * 2
    cache = run.generated_rows * run.length * of_a_token
    return 2.0 * run.shape.num_parameters / run.vllm_parallel + cache


def layer_bytes(run: Workload) -> float:
    """Bytes a token that one layer keeps for its backward pass."""
    shape, wide, narrow = run.shape, run.weight_bytes, run.compute_bytes
    h, q, inner = shape.hidden, shape.query_width, shape.intermediate
    # Both norms: their float32 input, and where their weight is trained its other factor.
    norms = 2 * h * (4 + (0 if run.is_lora else wide)) + 8
    # Query, key and value as attention reads them (keys and values repeated for each head), its result, the sums of its softmax,
    # and the row's mask as numbers to add.
    attention = 4 * q * narrow + 4 * shape.heads + narrow * run.length
    mlp = 4 * inner * narrow
    # The inputs of the linear maps that are not counted above: one tensor for q, k, v and one for gate, up; if products are
    # narrower than the residual stream, a copy for each map.
    inputs = (5 if run.is_autocast else 2) * h * narrow
    if run.is_lora and wide == 2:
        inputs += (5 * h + q + inner) * narrow  # float32 adapters on half-precision weights: cast there and back
    return float(norms + attention + mlp + inputs)


def training_activations(run: Workload, tokens: int) -> float:
    """Bytes that all layers keep, and those that a backward pass adds at the widest point of an MLP.

    With checkpointing: the input of each layer, and one layer computed again. Source: Chen et al. (arXiv 1604.06174).
    """
    shape, kept = run.shape, layer_bytes(run)
    all_layers = shape.layers * shape.hidden * run.weight_bytes + kept if run.is_checkpointed else shape.layers * kept
    return tokens * (all_layers + 3 * shape.intermediate * run.compute_bytes + 2 * shape.hidden * run.weight_bytes)


def passing_activations(run: Workload, tokens: int) -> float:
    """Bytes of activations in a pass without gradients: one MLP at its widest point."""
    shape = run.shape
    return float(tokens * (3 * shape.intermediate * run.compute_bytes + 3 * shape.hidden * run.weight_bytes))


def head_bytes(run: Workload, tokens: int, *, is_training: bool) -> float:
    """Bytes of TRL's fused head: one tile of logits, and in training float32 gradients of hidden states and of the head."""
    shape, has_triton = run.shape, not run.sharding.is_cpu
    # Without Triton, logits are computed at every position, not only in completions.
    scored = run.rows * run.completion if has_triton else tokens
    tile = min(scored, TOKEN_TILE) * (VOCABULARY_TILE if has_triton else min(shape.vocab, VOCABULARY_TILE))
    held = tile * (run.compute_bytes + (0.0 if has_triton else 4.0 * TILES_WITHOUT_TRITON[is_training]))
    if is_training:
        held += 4.0 * shape.hidden * (scored + (0 if run.is_lora else shape.vocab))
    return held
