"""Bytes of activations and logits, counted tensor by tensor as transformers' Llama and Qwen2 keep them for the backward pass.

Korthikanti et al. (arXiv 2205.05198, sec. 4.1, eq. 1-2) count s b h (34 + 5 a s / h) bytes for a layer of GPT with dropout and GELU in 16 bits; the
same count is made here for RMSNorm, rotary grouped-query attention that keeps no score matrix, and gated MLPs. docs/memory.md has the table.
"""

from __future__ import annotations

from tinyzero_trl.estimate.workload import Plan

TOKEN_TILE, VOCABULARY_TILE = 4096, 32768
"""Size of the logits TRL has at once (kernels/chunked_logprob.py: TOKEN_CHUNK_SIZE; trainer/utils.py)."""
TILES_WITHOUT_TRITON = {False: 3, True: 6}
"""Float32 copies of a tile that TRL's torch fallback holds at its peak, forward and backward."""


def layer_bytes(plan: Plan) -> float:
    """What one layer keeps for its backward pass, bytes a token."""
    shape, wide, narrow = plan.shape, plan.residual_bytes, plan.compute_bytes
    h, q, inner = shape.hidden, shape.query_width, shape.intermediate
    # Both norms: their float32 input, and where their weight is trained its other factor.
    norms = 2 * h * (4 + (0 if plan.is_lora else wide)) + 8
    # Query, key and value as attention reads them (keys and values repeated for each head), what it returns, the sums of its
    # softmax, and the row's mask, which it turns into numbers to add.
    attention = 4 * q * narrow + 4 * shape.heads + narrow * plan.length
    mlp = 4 * inner * narrow
    # The inputs of the linear maps that nothing above holds: one tensor for q, k, v and one for gate, up; where
    # products are narrower than the stream, each map has a copy of its own.
    copies = 5 if plan.is_autocast else 2
    inputs = copies * h * narrow
    if plan.is_lora and plan.residual_bytes == 2:
        inputs += (5 * h + q + inner) * narrow  # float32 adapters on half-precision weights: cast there and back
    return float(norms + attention + mlp + inputs)


def layer_activations(plan: Plan, tokens: int) -> float:
    """All layers', and what the last one's backward pass adds."""
    return plan.shape.layers * tokens * layer_bytes(plan) + _backward_bytes(plan, tokens)


def checkpointed_activations(plan: Plan, tokens: int) -> float:
    """Each layer's input, and one layer computed anew for its backward pass. Source: Chen et al. (arXiv 1604.06174)."""
    inputs = plan.shape.layers * tokens * plan.shape.hidden * plan.residual_bytes
    return inputs + tokens * layer_bytes(plan) + _backward_bytes(plan, tokens)


def passing_activations(plan: Plan, tokens: int) -> float:
    """Of a pass without gradients: one layer's MLP at its widest."""
    shape = plan.shape
    return float(tokens * (3 * shape.intermediate * plan.compute_bytes + 3 * shape.hidden * plan.residual_bytes))


def head_bytes(plan: Plan, tokens: int, *, is_training: bool) -> float:
    """What TRL's fused head adds: a tile of logits at a time, and in training float32 gradients of hidden states and of the head."""
    shape = plan.shape
    has_triton = not plan.sharding.is_cpu
    # Without Triton every position is scored, not only completions.
    scored = plan.rows * plan.completion if has_triton else tokens
    tile = min(scored, TOKEN_TILE) * (VOCABULARY_TILE if has_triton else min(shape.vocab, VOCABULARY_TILE))
    held = float(tile * plan.compute_bytes)
    if not has_triton:
        held += 4.0 * tile * TILES_WITHOUT_TRITON[is_training]
    if is_training:
        held += 4.0 * scored * shape.hidden
        if not plan.is_lora:
            held += 4.0 * shape.vocab * shape.hidden
    return held


def sampling_bytes(plan: Plan, rows: int) -> float:
    """Our sampler's logits, log-probabilities and probabilities (float32) and their running sum (float64)."""
    narrow = plan.compute_bytes if plan.compute_bytes == 2 else 0
    return float(rows * plan.shape.vocab * (narrow + 4 + 4 + 4 + 8))


def _backward_bytes(plan: Plan, tokens: int) -> float:
    """Gradients of activations at the widest point of a layer: those of the MLP's three inner tensors and of the stream."""
    shape = plan.shape
    return float(tokens * (3 * shape.intermediate * plan.compute_bytes + 2 * shape.hidden * plan.residual_bytes))
