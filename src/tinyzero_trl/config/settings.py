"""The sections of a recipe that are ours: one dataclass each, whose fields are the keys, types and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf


@dataclass
class BatchingSettings:
    """The batch of an optimizer step, and work left out of the training phase; its gradient stays TRL's up to rounding."""

    skip_constant_groups: bool = True
    """Rows whose advantage is 0 are left out of old-logprob, forward and backward passes, where the loss has no other term."""
    sort_by_length: bool = True
    """Rows of an optimizer step are dealt into micro-batches of like length, each trimmed to its longest."""
    max_tokens_per_microbatch: int | None = None
    """Tokens computed at once at most, padding included; null: per_device_train_batch_size times the widest row there is."""
    fold_old_logprobs: bool = True
    """Old log-probabilities are read off the loss's own forward pass where the rollouts are on-policy."""
    packing: bool = False
    """Rows are computed end to end without padding; needs an attention implementation for variable lengths."""
    completions_per_step: int | None = None
    """Completions of an optimizer step, all processes together; trainer.gradient_accumulation_steps follows from it. null: it is
    trainer.per_device_train_batch_size x processes x trainer.gradient_accumulation_steps."""
    completions_per_rollout: int | None = None
    """Completions generated at once, all processes together; trainer.steps_per_generation follows from it. null: those of one step."""


@dataclass
class CriticSettings:
    """The value model of `algorithm: ppo`."""

    model: str | None = None
    """Hub id or folder it starts from; null: the policy's own."""
    learning_rate: float = 1.0e-5
    """Constant; the value model has an AdamW of its own, without weight decay."""
    num_minibatches: int = 4
    """Steps of the value model for one of the policy's, each on its share of the rows."""
    warm_start_prompts: int = 256
    """Prompts the value model alone learns from before the policy's first update."""
    gamma: float = 1.0
    """Discount a token."""
    lam: float = 1.0
    """Lambda of generalised advantage estimation; below 1 the reward of an answer fades over the tokens before it."""
    clip_range: float = 0.2
    """How far a value may move from the value at rollout time before its loss stops growing."""


@dataclass
class CurriculumSettings:
    """Which problems come when."""

    by: str | None = None
    """null: as shuffled; a numeric column of the rows; or `success`: how often the policy solved the problem when it last came."""
    kind: str = "order"
    """`order`: each epoch from low to high (of success: from high to low). `weight`: drawn in proportion to the column (of success: to
    p (1 - p) + 0.05, so that problems of middling success come more often)."""


@dataclass
class ReplaySettings:
    """Solved groups trained on once more in the place of groups without signal."""

    num_groups: int = 0
    """Groups each process keeps; 0 switches replay off."""
    max_age: int = 8
    """Optimizer steps after which a group is forgotten."""


@dataclass
class RewardWorkerSettings:
    """Rewards computed in processes of their own."""

    rewards: list[str] = field(default_factory=list)
    """Names, as in `rewards`, of those that are slow or not to be trusted."""
    num_workers: int = 2
    """Processes on each training process."""
    seconds_per_call: float = 5.0
    """After which a call is killed and its sample has no reward."""
    seconds_per_batch: float = 120.0
    """After which what is left of a batch has no reward."""
    memory_gib: float | None = 8.0
    """Address space of a worker (GiB): a call that wants more has no reward; null: no limit, which CUDA in a worker needs."""


@dataclass
class EvaluationSettings:
    """How held-out problems are answered during training; when, and how many responses each, say TRL's keys."""

    temperature: float | None = None
    """Of the responses that `eval_accuracy` counts; 0 is greedy; null: trainer.temperature."""
    greedy: bool = False
    """One greedy response more to each problem: `eval_greedy_accuracy`."""


@dataclass
class GenerationSettings:
    """Who generates completions, in training."""

    engine: str = "transformers"
    """`transformers`: the trainer's own model; `server`: a vLLM server; `colocate`: vLLM inside the trainer's processes."""
    server: Any = "auto"
    """`auto`: rank 0 starts one, watches it and stops it; or the URL of one that `tinyzero serve` started, or a list of such."""
    token_file: Any = None
    """Of a server at a URL: the file `tinyzero serve` named, a list for a list; null: where it puts it on this machine."""
    stop: list[str] = field(default_factory=list)
    """Strings that end a completion, such as "</answer>"; the token that completes one is the last, and trained on."""
    weight_transfer: str = "auto"
    """`file`: through files both sides see, on any device; `nccl`: between GPUs; `auto`: nccl where each side has GPUs of its own and no
    weights are gathered for it (ZeRO-3, FSDP2)."""
    lora: str = "auto"
    """What of a model with an adapter goes to vLLM: `merged`, whole weights; `adapter`, the adapter alone, for vLLM to apply to the weights
    it has; `auto`: the adapter where that is the same policy and vLLM takes it."""
    shared_folder: str | None = None
    """Where files are handed over, as large as the weights; null: shared memory. Across hosts: a folder on both."""
    devices: str | None = None
    """The server's GPUs as CUDA_VISIBLE_DEVICES names them, such as "6,7", on which nothing trains; null: the trainer's own."""
    memory_share: float | None = None
    """Of each of the server's GPUs; null: 0.9 of GPUs of its own, 0.4 of the trainer's. Colocate has trainer.vllm_gpu_memory_utilization."""
    kv_cache_gib: float | None = None
    """Key-value cache (GiB); null: what the memory share leaves on a GPU, 1 on a CPU."""
    offload: bool = False
    """The optimizer's state waits in the host's memory but for its steps, the reference model while completions are generated."""
    seconds_to_start: float = 600.0
    """Until a server can generate."""
    seconds_per_batch: float = 600.0
    """For all completions of a generation batch, or one transfer of weights."""
    seconds_per_call: float = 60.0
    """For what takes milliseconds, or as long as the engine takes for one token of all rows: health, versions, signs of life."""
    max_failures: int = 3
    """Of one batch in a row, each answered with a restart and the same rows again; one more saves and ends the run."""


def features(cfg: DictConfig) -> dict[str, Any]:
    """Keyword arguments of TinyZeroTrainer that a recipe's own keys stand for."""
    sections = ("batching", "critic", "curriculum", "evaluation", "replay")
    keys = (
        *("give_up_after", "algorithm", "advantage_whitening", "soft_overlong_tokens", "dynamic_sampling_rounds"),
        "max_generated_tokens",
    )
    ours = {key: cfg[key] for key in keys} | {key: OmegaConf.to_object(cfg[key]) for key in sections}
    return ours | {"offload": cfg.generation.offload, "stop": list(cfg.generation.stop)}
