"""What a run does in one step and in which precision: the numbers of a recipe that memory and time depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.config import Sharding, accumulated, generated_at_once, weight_transfer
from tinyzero_trl.estimate.shapes import Shape

PROMPT_TOKENS = 200
"""Of a prompt, where nobody says: Countdown and multiplication take 100 to 180 tokens of Qwen's tokenizer."""
ROWS_SAMPLED_AT_ONCE = 256
"""generation.sampler.DEFAULT_BATCH_SIZE, which this module may not import."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NESTED_4BIT, PLAIN_4BIT = 0.5 + 0.127 / 8, 0.5 + 0.5 / 8
"""Bytes of a 4-bit weight with its scales. Source: QLoRA (arXiv 2305.14314), sec. 3: 0.5 bits a weight, 0.127 double-quantized."""

Engine = Literal["transformers", "colocate", "server"]


@dataclass(frozen=True)
class Plan:
    """One process of a run, one optimizer step."""

    shape: Shape
    sharding: Sharding
    weight_bytes: float
    """Of a weight outside the layers' linear maps: embedding, head, norms."""
    linear_bytes: float
    """Of a weight of the layers' linear maps."""
    compute_bytes: int
    """Of a number in a matrix product."""
    residual_bytes: int
    """Of a number between layers."""
    is_autocast: bool
    """Whether weights are wider than the products they go into, and copied for it."""
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
    has_reference_model: bool
    """A second whole model; an adapter's reference is the model without it."""
    has_reference_pass: bool
    has_old_pass: bool
    """Old log-probabilities take a pass of their own."""
    has_critic: bool
    engine: Engine
    vllm_share: float
    """Share of a device's memory vLLM takes."""
    vllm_sleeps: bool
    vllm_parallel: int
    """Devices that share one vLLM in colocate."""
    sends_by_nccl: bool
    """True if weights go to a vLLM server by NCCL, from a buffer on the first device."""
    is_offloaded: bool
    """generation.offload: the optimizer's state is there for its steps alone, the reference model is not while completions are generated."""

    @property
    def is_lora(self) -> bool:
        return self.lora_weights is not None

    @property
    def trained(self) -> int:
        """Weights that have a gradient."""
        return self.shape.num_parameters if self.lora_weights is None else self.lora_weights

    @property
    def has_float32_sums(self) -> bool:
        """True if gradients of micro-batches are summed in float32 beside weights of two bytes (config.sum_gradients_in_float32)."""
        return self.sharding.kind == "deepspeed" and self.sharding.stage > 0 and self.weight_bytes == 2

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return self.prompt + self.completion


def plan_of(cfg: DictConfig, shape: Shape, sharding: Sharding, *, prompt: int | None = None) -> Plan:
    """The plan of a composed recipe. prompt: tokens of the longest prompt; None takes PROMPT_TOKENS, 30 for the tiny model."""
    model, trainer, batching = cfg.model, cfg.trainer, cfg.batching
    loaded = BYTES.get(str(model.dtype), 2)
    half = bool(trainer.fp16) or trainer.bf16 is not False
    is_deepspeed = sharding.kind == "deepspeed"
    weight = 2 if is_deepspeed and half else loaded
    linear = float(weight)
    if model.load_in_4bit:
        linear = NESTED_4BIT if model.use_bnb_nested_quant else PLAIN_4BIT
    elif model.load_in_8bit:
        linear = 1.0
    lora = shape.lora_weights(int(model.lora_r), _targets(model)) if model.use_peft else None
    rows = int(trainer.per_device_train_batch_size)
    trained_rows = rows * accumulated(cfg, num_processes=sharding.num_processes)
    longest = prompt or (30 if str(model.model_name_or_path) == "tiny" else PROMPT_TOKENS)
    completion = int(trainer.max_completion_length)
    budget = batching.max_tokens_per_microbatch
    if budget is not None:
        rows = max(1, int(budget) // (longest + completion))
    generated_rows = generated_at_once(cfg, num_processes=sharding.num_processes) // sharding.num_processes
    steps_per_rollout = int(trainer.num_iterations) * generated_rows / trained_rows
    engine = _engine(cfg)
    corrects = bool(trainer.use_vllm) and bool(trainer.vllm_importance_sampling_correction)
    return Plan(
        shape=shape,
        sharding=sharding,
        weight_bytes=weight,
        linear_bytes=linear,
        compute_bytes=2 if half else loaded,
        residual_bytes=weight,
        is_autocast=half and weight == 4,
        lora_weights=lora,
        optimizer=str(trainer.optim),
        rows=rows,
        prompt=longest,
        completion=completion,
        trained_rows=trained_rows,
        generated_rows=generated_rows,
        steps_per_rollout=steps_per_rollout,
        is_checkpointed=bool(trainer.gradient_checkpointing),
        has_reference_model=trainer.beta != 0 and not model.use_peft,
        has_reference_pass=trainer.beta != 0,
        has_old_pass=steps_per_rollout > 1 or (corrects and not batching.fold_old_logprobs),
        has_critic=str(cfg.algorithm) == "ppo",
        engine=engine,
        vllm_share=float(trainer.vllm_gpu_memory_utilization),
        vllm_sleeps=bool(trainer.vllm_enable_sleep_mode),
        vllm_parallel=int(trainer.vllm_tensor_parallel_size),
        sends_by_nccl=engine == "server"
        and weight_transfer(cfg, stage=sharding.stage, is_on_cpu=sharding.is_cpu) == "nccl",
        is_offloaded=bool(cfg.generation.offload),
    )


def _engine(cfg: DictConfig) -> Engine:
    if not cfg.trainer.use_vllm:
        return "transformers"
    return "server" if str(cfg.trainer.vllm_mode) == "server" else "colocate"


def _targets(model: DictConfig) -> tuple[str, ...]:
    """Names of the adapted maps; PEFT's own choice for decoders, where a recipe names none, is q and v."""
    named = model.lora_target_modules
    if named is None:
        return ("q_proj", "v_proj")
    plain = OmegaConf.to_container(named) if OmegaConf.is_config(named) else [named]
    assert isinstance(plain, list)
    return tuple(map(str, plain))
