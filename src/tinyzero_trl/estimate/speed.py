"""Tokens and seconds of an optimizer step on a named GPU: products counted, over what a GPU reaches of its data sheet.

Rough on purpose: within a factor of two, with the assumptions below as constants. Nothing here has been measured on a GPU by us.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinyzero_trl.estimate.cards import Card
from tinyzero_trl.estimate.workload import ROWS_SAMPLED_AT_ONCE, Plan

TRAINING_UTILIZATION = 0.35
"""Share of peak products that a forward and backward pass of transformers reaches; PaLM (arXiv 2204.02311) reports 0.46 for its own stack."""
GENERATION_BANDWIDTH = 0.6
"""Share of a card's bandwidth that reading weights and cache reaches while a token is generated."""
SECONDS_A_LAYER = {"transformers": 6e-4, "vllm": 5e-5}
"""Launching a layer's kernels for one token: from Python, and from a captured graph."""
DEQUANTIZATION = 1.3
"""Factor of a pass through 4-bit weights (QLoRA's own measurements are 1.2 to 1.4)."""
MEAN_SHARE = 0.5
"""Mean completion as a share of the longest allowed, where nobody says."""


@dataclass(frozen=True)
class Speed:
    """One optimizer step of the whole run."""

    generated_tokens: float
    """Completion tokens of all processes."""
    trained_tokens: float
    """Tokens through forward and backward passes, prompts included."""
    generation: float
    """Seconds."""
    training: float
    """Seconds: log-probability passes, forward, backward."""

    @property
    def seconds(self) -> float:
        return self.generation + self.training


def speed_of(plan: Plan, card: Card, *, mean_completion: float | None = None) -> Speed:
    """Of one step; mean_completion: tokens of a completion on average."""
    mean = MEAN_SHARE * plan.completion if mean_completion is None else min(mean_completion, plan.completion)
    processes = plan.sharding.num_processes
    tokens = plan.trained_rows * (plan.prompt + mean)
    passes = 2.0 if plan.is_lora else 3.0  # forward, gradient of activations and, of trained weights, their own
    passes += 1.0 if plan.is_checkpointed else 0.0
    passes += plan.has_old_pass + plan.has_reference_pass
    products = _products_a_token(plan, (plan.prompt + mean) / 2) * passes * tokens
    training = products / (TRAINING_UTILIZATION * card.tflops * 1e12)
    if plan.linear_bytes < 1:
        training *= DEQUANTIZATION
    # Rollouts that serve several optimizer steps are paid for by each in its share.
    generated_tokens = plan.generated_rows * mean * processes / plan.steps_per_rollout
    generation = _generation_seconds(plan, card, plan.generated_rows, mean) / plan.steps_per_rollout
    return Speed(generated_tokens, tokens * processes, generation, training)


def _products_a_token(plan: Plan, mean_context: float) -> float:
    """Multiplications and additions of a forward pass: 2 a weight, and 4 a layer for each number of each earlier query width."""
    shape = plan.shape
    weights = shape.linear_weights + shape.vocab * shape.hidden
    return 2.0 * weights + 4.0 * shape.layers * shape.query_width * mean_context


def _generation_seconds(plan: Plan, card: Card, rows: float, mean: float) -> float:
    shape = plan.shape
    is_vllm = plan.engine != "transformers"
    weight_bytes = 2.0 * shape.num_parameters
    if not is_vllm:
        weight_bytes = plan.linear_bytes * shape.linear_weights + plan.weight_bytes * shape.embedding_weights
    cache_a_token = 2.0 * shape.layers * shape.kv_width * 2
    batch = rows if is_vllm else min(rows, ROWS_SAMPLED_AT_ONCE)
    # vLLM's free places are filled at once; our sampler goes on to the longest of each batch, with ever fewer rows.
    steps = mean if is_vllm else float(plan.completion)
    busy = batch if is_vllm else batch * mean / plan.completion
    reading = (weight_bytes + busy * (plan.prompt + mean / 2) * cache_a_token) / (
        GENERATION_BANDWIDTH * card.bandwidth * 1e12
    )
    computing = busy * 2.0 * shape.num_parameters / (TRAINING_UTILIZATION * card.tflops * 1e12)
    launching = shape.layers * SECONDS_A_LAYER["vllm" if is_vllm else "transformers"]
    prefill = rows * plan.prompt * 2.0 * shape.num_parameters / (TRAINING_UTILIZATION * card.tflops * 1e12)
    if plan.linear_bytes < 1 and not is_vllm:
        computing, reading = computing * DEQUANTIZATION, reading * DEQUANTIZATION
    return prefill + (rows / batch) * steps * (max(reading, computing) + launching)
