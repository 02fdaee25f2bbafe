"""GPUs by name, and tokens and seconds of an optimizer step on one: counted products divided by a share of the data sheet's speed.

The estimate is rough: within a factor of two, with the constants below as assumptions. We have measured none of them on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyzero_trl.estimate.workload import ROWS_SAMPLED_AT_ONCE, Workload
from tinyzero_trl.failures import ConfigError, nearest

TRAINING_UTILIZATION = 0.35
"""Share of peak products that a forward and backward pass of transformers reaches; PaLM (arXiv 2204.02311) reports 0.46 for its own stack."""
GENERATION_BANDWIDTH = 0.6
"""Share of a card's bandwidth that reading weights and cache reaches while a token is generated."""
SECONDS_A_LAYER, SECONDS_A_LAYER_VLLM = 6e-4, 5e-5
"""Seconds to launch the kernels of a layer for one token: from Python, and from a captured graph."""
DEQUANTIZATION = 1.3
"""Factor on the time of a pass through 4-bit weights (QLoRA measured 1.2 to 1.4)."""
MEAN_SHARE = 0.5
"""Default mean length of a completion, as a share of the longest allowed."""
SIZES_GB = (8, 16, 24, 40, 80, 140)
"""Memory of the cards that the estimate names as large enough, in GB."""
USABLE = 0.97
"""Share of a card that a process gets: the driver and a desktop take the rest."""


@dataclass(frozen=True)
class Card:
    """One GPU, as its data sheet has it."""

    name: str
    memory_gib: float
    """Memory by its driver, which is less than advertised."""
    tflops: float
    """Dense matrix products in bfloat16 with float32 sums (float16 where it has no bfloat16), 10^12 a second."""
    bandwidth: float
    """Bandwidth of its memory, 10^12 bytes a second."""


CARDS: Mapping[str, Card] = {
    name: Card(name, *numbers)
    for name, numbers in {
        "RTX3070": (8.0, 41, 0.448),
        "RTX4060": (8.0, 30, 0.272),
        "T4": (15.0, 65, 0.320),
        "V100": (16.0, 125, 0.900),
        "RTX4080": (16.0, 98, 0.717),
        "A10": (22.5, 125, 0.600),
        "L4": (22.5, 121, 0.300),
        "RTX3090": (24.0, 71, 0.936),
        "RTX4090": (24.0, 165, 1.008),
        "RTX5090": (31.8, 210, 1.792),
        "A100-40": (40.0, 312, 1.555),
        "A40": (45.0, 150, 0.696),
        "L40S": (45.0, 362, 0.864),
        "A6000": (48.0, 155, 0.768),
        "A100": (80.0, 312, 2.039),
        "H100": (80.0, 989, 3.350),
        "H200": (140.0, 989, 4.800),
        "B200": (180.0, 2250, 8.000),
    }.items()
}
"""Source: NVIDIA's data sheets, without sparsity; consumer cards at the rate for float32 sums."""


def card_of(name: str) -> Card:
    """The card a person names, or that nvidia-smi shows as `NVIDIA H100 80GB HBM3`. Raises: ConfigError that lists them."""
    plain = name.upper()
    for word in ("NVIDIA", "GEFORCE", "TESLA", " ", "-"):
        plain = plain.replace(word, "")
    if "A100" in plain and "40" in plain:
        return CARDS["A100-40"]
    found = [card for key, card in CARDS.items() if key in plain]
    if not found:
        raise ConfigError(
            f"--gpu {name!r} is not known; known are {', '.join(CARDS)}{nearest(name.upper(), list(CARDS))}"
        )
    return max(found, key=lambda card: len(card.name))


def smallest_size(peak_bytes: float) -> int | None:
    """The smallest of SIZES_GB that holds so many bytes, or None."""
    return next((size for size in SIZES_GB if peak_bytes <= USABLE * size * 2**30), None)


@dataclass(frozen=True)
class Speed:
    """Tokens and seconds of one optimizer step of the whole run."""

    generated_tokens: float
    """Completion tokens of all processes."""
    trained_tokens: float
    """Tokens through forward and backward passes, prompts included."""
    generation: float
    """Seconds of generation."""
    training: float
    """Seconds of log-probability passes, forward and backward."""

    @property
    def seconds(self) -> float:
        return self.generation + self.training


def speed_of(run: Workload, card: Card, *, mean_completion: float | None = None) -> Speed:
    """Tokens and seconds of one step; mean_completion: tokens of a completion on average."""
    shape = run.shape
    mean = MEAN_SHARE * run.completion if mean_completion is None else min(mean_completion, run.completion)
    tokens = run.trained_rows * (run.prompt + mean)
    passes = 2.0 if run.is_lora else 3.0  # forward, gradient of activations and, of trained weights, their own
    passes += run.is_checkpointed + run.has_old_pass + run.has_reference_pass
    # Multiplications and additions of a forward pass: 2 a weight, and 4 a layer for each number of each earlier query width.
    of_a_token = 2.0 * (shape.linear_weights + shape.vocab * shape.hidden)
    of_a_token += 4.0 * shape.layers * shape.query_width * (run.prompt + mean) / 2
    training = _computing(of_a_token * passes * tokens, card) * (DEQUANTIZATION if run.linear_bytes < 1 else 1.0)
    # The cost of a rollout is divided among the optimizer steps that use it.
    processes, share = run.sharding.num_processes, 1 / run.steps_per_rollout
    generated = run.generated_rows * mean * processes * share
    return Speed(generated, tokens * processes, _generation_seconds(run, card, mean) * share, training)


def _computing(products: float, card: Card) -> float:
    """Seconds for so many multiplications and additions."""
    return products / (TRAINING_UTILIZATION * card.tflops * 1e12)


def _generation_seconds(run: Workload, card: Card, mean: float) -> float:
    shape, rows, of_a_token = run.shape, run.generated_rows, 2.0 * run.shape.num_parameters
    cache_a_token = 2.0 * shape.layers * shape.kv_width * 2
    if run.engine == "transformers":
        # Our sampler runs to the longest completion of each batch, with fewer and fewer rows.
        batch, steps, launching = min(rows, ROWS_SAMPLED_AT_ONCE), float(run.completion), SECONDS_A_LAYER
        busy = batch * mean / run.completion
        weight_bytes = run.linear_bytes * shape.linear_weights + run.weight_bytes * shape.embedding_weights
        factor = DEQUANTIZATION if run.linear_bytes < 1 else 1.0
    else:  # vLLM fills a free place immediately
        batch, steps, launching = rows, mean, SECONDS_A_LAYER_VLLM
        busy, weight_bytes, factor = float(rows), 2.0 * shape.num_parameters, 1.0
    read = weight_bytes + busy * (run.prompt + mean / 2) * cache_a_token
    reading = read / (GENERATION_BANDWIDTH * card.bandwidth * 1e12)
    a_token = factor * max(reading, _computing(busy * of_a_token, card)) + shape.layers * launching
    return _computing(rows * run.prompt * of_a_token, card) + rows / batch * steps * a_token
