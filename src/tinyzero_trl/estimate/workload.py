"""The shape of a model, and the work of one process in one optimizer step: the numbers that memory and time depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl import hub
from tinyzero_trl.config import CPU_TOKENS, Sharding, accumulated, generated_at_once, weight_transfer
from tinyzero_trl.failures import ConfigError, first_line, nearest
from tinyzero_trl.models import TRAINED, json_object, load_path, locate

PROMPT_TOKENS = 200
"""Default length of the longest prompt: those of Countdown and multiplication have 100 to 180 tokens of Qwen's tokenizer."""
ROWS_SAMPLED_AT_ONCE = 256
"""generation.sampler.DEFAULT_BATCH_SIZE, which this module may not import."""
ROWS_ON_A_CPU, BYTES_ON_A_CPU = 512, 2**30
"""WIDE_BATCH_SIZE and WIDE_BYTES of the same."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NESTED_4BIT, PLAIN_4BIT = 0.5 + 0.127 / 8, 0.5 + 0.5 / 8
"""Bytes of a 4-bit weight with its scales. Source: QLoRA (arXiv 2305.14314), sec. 3: 0.5 bits a weight, 0.127 double-quantized."""
MAPS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps of a layer, in the order of Shape.maps."""
SECONDS_FOR_THE_HUB = 5


@dataclass(frozen=True)
class Shape:
    """A dense decoder with gated MLPs (Llama, Qwen2, Qwen3, Mistral, ...)."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    is_tied: bool
    """True if the head is the embedding."""
    has_qkv_bias: bool = False

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each of MAPS."""
        h, q, kv, i = self.hidden, self.query_width, self.kv_width, self.intermediate
        return (h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linear maps."""
        return sum(inputs * outputs for inputs, outputs in self.maps)

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear maps, which LoRA adapts and 4-bit loading shrinks; neither applies to the head."""
        return self.layers * self.layer_weights

    @property
    def embedding_weights(self) -> int:
        """Weights of embedding and head, counted once if they are the same."""
        return self.vocab * self.hidden * (1 if self.is_tied else 2)

    @property
    def num_parameters(self) -> int:
        biases = self.query_width + 2 * self.kv_width if self.has_qkv_bias else 0
        return self.linear_weights + self.embedding_weights + self.layers * (2 * self.hidden + biases) + self.hidden

    def lora_weights(self, rank: int, targets: tuple[str, ...]) -> int:
        """Weights of an adapter of `rank` on the named maps of every layer (`all-linear`: all seven)."""
        is_adapted = ["all-linear" in targets or name.endswith(targets) for name in MAPS]
        return self.layers * rank * sum(sum(sizes) for sizes, is_in in zip(self.maps, is_adapted, strict=True) if is_in)


KNOWN: Mapping[str, Shape] = {
    "Qwen/Qwen2.5-0.5B": Shape(24, 896, 14, 2, 64, 4864, 151936, True, True),
    "Qwen/Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151936, True, True),
    "Qwen/Qwen2.5-3B": Shape(36, 2048, 16, 2, 128, 11008, 151936, True, True),
    "Qwen/Qwen2.5-7B": Shape(28, 3584, 28, 4, 128, 18944, 152064, False, True),
    "Qwen/Qwen2.5-14B": Shape(48, 5120, 40, 8, 128, 13824, 152064, False, True),
    "Qwen/Qwen2.5-32B": Shape(64, 5120, 40, 8, 128, 27648, 152064, False, True),
    "Qwen/Qwen2.5-72B": Shape(80, 8192, 64, 8, 128, 29568, 152064, False, True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151936, False, True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Shape(28, 3584, 28, 4, 128, 18944, 152064, False, True),
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 16, 8, 128, 3072, 151936, True),
    "Qwen/Qwen3-1.7B": Shape(28, 2048, 16, 8, 128, 6144, 151936, True),
    "Qwen/Qwen3-4B": Shape(36, 2560, 32, 8, 128, 9728, 151936, True),
    "Qwen/Qwen3-8B": Shape(36, 4096, 32, 8, 128, 12288, 151936, False),
    "meta-llama/Llama-3.2-1B": Shape(16, 2048, 32, 8, 64, 8192, 128256, True),
    "meta-llama/Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128256, True),
    "meta-llama/Llama-3.1-8B": Shape(32, 4096, 32, 8, 128, 14336, 128256, False),
    "meta-llama/Llama-3.1-70B": Shape(80, 8192, 64, 8, 128, 28672, 128256, False),
}
"""Shapes from the config.json files on the hub; `-Instruct`, `-Math` and `-Coder` have the shape of their base."""


def shape_of(name: str, *, revision: str | None = None) -> Shape:
    """The shape of a folder, a known model or a model on the hub, tried in this order.

    Raises: ConfigError if the model is not known and the hub does not answer, or if it is not a dense decoder.
    """
    folder, known = Path(load_path(name)).expanduser(), name
    if folder.is_dir() and not (folder / "config.json").is_file():
        return shape_of(locate(name, typed=TRAINED).path, revision=revision)
    if folder.is_dir():
        return shape_from(json_object(folder / "config.json", f"{TRAINED}{name}"), name=name)
    for variant in ("-Instruct", "-Base", "-Math", "-Coder"):
        known = known.replace(variant, "")
    if known in KNOWN:
        return KNOWN[known]
    locate(name, typed=TRAINED)  # raises for a path that is not there
    try:
        from huggingface_hub import hf_hub_download

        hub.reached()
        file = hf_hub_download(name, "config.json", revision=revision, etag_timeout=SECONDS_FOR_THE_HUB)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.model_name_or_path: the shape of {name} is not known here, and the hub did not give its config.json "
            f"({first_line(error)[:120]}); give a folder with a config.json, or one of {', '.join(KNOWN)}{nearest(name, list(KNOWN))}"
        ) from error
    return shape_from(json.loads(Path(file).read_text(encoding="utf-8")), name=name)


def shape_from(config: Mapping[str, Any], *, name: str) -> Shape:
    """The shape a config.json describes. Raises: ConfigError for mixtures of experts and other architectures."""
    text = config.get("text_config") or config
    experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(key)]
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    missing = [key for key in needed if key not in text]
    if experts or missing:
        why = f"it has {experts[0]}" if experts else f"its config.json has no {missing[0]}"
        raise ConfigError(f"{name}: only dense decoders can be estimated; {why}")
    layers, hidden, heads, intermediate, vocab = (int(text[key]) for key in needed)
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        intermediate=intermediate,
        vocab=vocab,
        is_tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", True))),
        has_qkv_bias=bool(text.get("attention_bias", text.get("model_type") == "qwen2")),
    )


@dataclass(frozen=True)
class Workload:
    """The work of one process in one optimizer step."""

    shape: Shape
    sharding: Sharding
    weight_bytes: float
    """Bytes of a weight outside the layers' linear maps (embedding, head, norms), and of a number between layers."""
    linear_bytes: float
    """Bytes of a weight of the layers' linear maps."""
    compute_bytes: int
    """Bytes of a number in a matrix product."""
    lora_weights: int | None
    """Weights of the adapter; None: all weights are trained."""
    optimizer: str
    rows: int
    """Rows of a micro-batch."""
    prompt: int
    """Tokens of the longest prompt."""
    completion: int
    """Tokens of the longest completion."""
    trained_rows: int
    """Completions a process trains on in one optimizer step."""
    generated_rows: int
    """Completions a process generates at once."""
    steps_per_rollout: float
    """Optimizer steps for each time that completions are generated."""
    is_checkpointed: bool
    has_reference_pass: bool
    has_old_pass: bool
    """True if old log-probabilities take a pass of their own."""
    has_critic: bool
    engine: Literal["transformers", "colocate", "server"]
    vllm_share: float
    """Share of a device's memory vLLM takes."""
    vllm_sleeps: bool
    vllm_parallel: int
    """Devices that share one vLLM in colocate."""
    sends_by_nccl: bool
    """True if weights are sent to a vLLM server by NCCL, from a buffer on the first device."""
    is_offloaded: bool
    """generation.offload: the optimizer's state is on the device only for its steps, the reference model only outside of generation."""

    @property
    def is_autocast(self) -> bool:
        """True if weights are wider than the products that use them, which copies them."""
        return self.compute_bytes < self.weight_bytes

    @property
    def is_lora(self) -> bool:
        return self.lora_weights is not None

    @property
    def has_reference_model(self) -> bool:
        """True if a second model is in memory; the reference of an adapter is the model without it."""
        return self.has_reference_pass and not self.is_lora

    @property
    def trained(self) -> int:
        """Weights that have a gradient."""
        return self.shape.num_parameters if self.lora_weights is None else self.lora_weights

    @property
    def trained_bytes(self) -> float:
        """Bytes of a trained weight. An adapter is float32 (PEFT; models/adapters.py: make_trainable), unless DeepSpeed has the master weights."""
        is_wide = self.is_lora and not (self.sharding.kind == "deepspeed" and self.weight_bytes == 2)
        return 4.0 if is_wide else float(self.weight_bytes)

    @property
    def has_float32_sums(self) -> bool:
        """True if gradients of micro-batches are summed in float32 beside weights of two bytes (config.sum_gradients_in_float32)."""
        return self.sharding.kind == "deepspeed" and self.sharding.stage > 0 and self.weight_bytes == 2

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.prompt + self.completion


def workload_of(cfg: DictConfig, shape: Shape, sharding: Sharding, *, prompt: int | None = None) -> Workload:
    """The workload of a composed recipe. prompt: tokens of the longest prompt; None takes PROMPT_TOKENS, 30 for the tiny model."""
    model, trainer, batching = cfg.model, cfg.trainer, cfg.batching
    loaded = BYTES.get(str(model.dtype), 2)
    half = bool(trainer.fp16) or trainer.bf16 is not False
    weight = 2 if sharding.kind == "deepspeed" and half else loaded
    linear = float(weight)
    if model.load_in_4bit:
        linear = NESTED_4BIT if model.use_bnb_nested_quant else PLAIN_4BIT
    elif model.load_in_8bit:
        linear = 1.0
    rows = int(trainer.per_device_train_batch_size)
    trained_rows = rows * accumulated(cfg, num_processes=sharding.num_processes)
    longest = prompt or (30 if str(model.model_name_or_path) in hub.SHIPPED else PROMPT_TOKENS)
    completion = int(trainer.max_completion_length)
    if batching.max_tokens_per_microbatch is not None:
        rows = max(1, int(batching.max_tokens_per_microbatch) // (longest + completion))
    elif sharding.is_cpu and batching.sort_by_length:
        rows = min(rows, max(1, CPU_TOKENS // (longest + completion)))
    generated_rows = generated_at_once(cfg, num_processes=sharding.num_processes) // sharding.num_processes
    steps_per_rollout = int(trainer.num_iterations) * generated_rows / trained_rows
    corrects = bool(trainer.use_vllm) and bool(trainer.vllm_importance_sampling_correction)
    vllm: Literal["colocate", "server"] = "server" if trainer.vllm_mode == "server" else "colocate"
    transfer = weight_transfer(cfg, stage=sharding.stage, is_on_cpu=sharding.is_cpu) if trainer.use_vllm else None
    return Workload(
        shape=shape,
        sharding=sharding,
        weight_bytes=weight,
        linear_bytes=linear,
        compute_bytes=2 if half else loaded,
        lora_weights=shape.lora_weights(int(model.lora_r), _targets(model)) if model.use_peft else None,
        optimizer=str(trainer.optim),
        rows=rows,
        prompt=longest,
        completion=completion,
        trained_rows=trained_rows,
        generated_rows=generated_rows,
        steps_per_rollout=steps_per_rollout,
        is_checkpointed=bool(trainer.gradient_checkpointing),
        has_reference_pass=trainer.beta != 0,
        has_old_pass=steps_per_rollout > 1 or (corrects and not batching.fold_old_logprobs),
        has_critic=str(cfg.algorithm) == "ppo",
        engine=vllm if trainer.use_vllm else "transformers",
        vllm_share=float(trainer.vllm_gpu_memory_utilization),
        vllm_sleeps=bool(trainer.vllm_enable_sleep_mode),
        vllm_parallel=int(trainer.vllm_tensor_parallel_size),
        sends_by_nccl=vllm == "server" and transfer == "nccl",
        is_offloaded=bool(cfg.generation.offload),
    )


def _targets(model: DictConfig) -> tuple[str, ...]:
    """Names of the adapted maps; if the recipe names none, q and v, PEFT's default for decoders."""
    named: Any = ["q_proj", "v_proj"] if model.lora_target_modules is None else model.lora_target_modules
    plain: Any = OmegaConf.to_container(named) if OmegaConf.is_config(named) else named
    return (plain,) if isinstance(plain, str) else tuple(map(str, plain))
