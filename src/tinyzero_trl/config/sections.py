"""Our own keys of a recipe, section by section: types and defaults, and beside each dataclass the rules between its keys.

`batching` and `generation` have files of their own (batching.py, generation.py); `trainer` and `model` hold TRL's keys (method.py).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from tinyzero_trl.algorithms import ALGORITHMS
from tinyzero_trl.config.batching import BatchingSettings, check_whole_groups, generated_at_once
from tinyzero_trl.config.environment import is_zero3, uses_fsdp
from tinyzero_trl.config.generation import GenerationSettings
from tinyzero_trl.failures import ConfigError, nearest

WHITENINGS = ("none", "batch")
CURRICULA = ("order", "weight")
DATA_KEYS: dict[str, Any] = {
    "source": MISSING,
    "split_rule": "problem",
    "num_train_rows": None,
    "num_eval_rows": 0,
    "seed": 0,
}
"""Keys of `data` that every task has; its other keys are the keyword arguments of the task's `load`."""


@dataclass
class CriticSettings:
    """The value model of `algorithm: ppo`."""

    model: str | None = None
    """Hub id or folder of the model it starts from; null: the policy's own."""
    learning_rate: float = 1.0e-5
    """Constant; the value model has an AdamW of its own, without weight decay."""
    num_minibatches: int = 4
    """Optimizer steps of the value model per step of the policy, each on an equal share of the rows."""
    warm_start_prompts: int = 256
    """Prompts on which the value model alone is trained before the policy's first update."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 1.0
    """Lambda of generalised advantage estimation; below 1 the reward of an answer fades over the tokens before it."""
    clip_range: float = 0.2
    """Distance from the value at rollout time beyond which the value loss stops growing."""


def check_critic(cfg: DictConfig) -> None:
    """Raises: ConfigError, for a critic without PPO, a number out of range, or a value model that would be sharded."""
    critic = cfg.critic
    if cfg.algorithm != "ppo":
        if idle := changed(cfg, "critic"):
            raise ConfigError(f"{', '.join(idle)}: the critic is for algorithm: ppo, and this is {cfg.algorithm}")
        return
    for key, is_right, wanted in (
        ("learning_rate", 0 < critic.learning_rate < math.inf, "more than 0"),
        ("num_minibatches", critic.num_minibatches >= 1, "1 or more"),
        ("warm_start_prompts", critic.warm_start_prompts >= 0, "0 or more"),
        ("gamma", 0 < critic.gamma <= 1, "more than 0 and at most 1"),
        ("lam", 0 <= critic.lam <= 1, "at least 0 and at most 1"),
        ("clip_range", critic.clip_range > 0, "more than 0"),
    ):
        if not is_right:
            raise ConfigError(f"critic.{key} must be {wanted}, got {critic[key]:g}")
    if is_zero3() or uses_fsdp():
        raise ConfigError(
            "algorithm: ppo keeps its value model whole on every process, which ZeRO-3 and FSDP do not allow; use one process, "
            "ddp, zero1 or zero2"
        )


@dataclass
class CurriculumSettings:
    """The order in which problems come."""

    by: str | None = None
    """null: as shuffled; a numeric column of the rows; or `success`: the share of right answers when the problem last came."""
    kind: str = "order"
    """`order`: each epoch from low to high (for success: from high to low). `weight`: drawn in proportion to the column (for success: to
    p (1 - p) + 0.05, so that problems of middling success come more often)."""


@dataclass
class ReplaySettings:
    """Solved groups that are trained on once more in the place of groups without signal."""

    num_groups: int = 0
    """Groups each process keeps; 0 switches replay off."""
    max_age: int = 8
    """Optimizer steps after which a group is forgotten."""


def check_curriculum(cfg: DictConfig) -> None:
    """Raises: ConfigError, for an unknown kind, or an order that nothing reads or that another key contradicts."""
    if cfg.curriculum.kind not in CURRICULA:
        raise ConfigError(
            f"curriculum.kind: there is no {cfg.curriculum.kind!r}; there is {', '.join(CURRICULA)}{nearest(cfg.curriculum.kind, CURRICULA)}"
        )
    _check_read(cfg, "curriculum", switch="by", off=None)
    if cfg.curriculum.by is not None and not cfg.trainer.shuffle_dataset:
        raise ConfigError(
            "trainer.shuffle_dataset=false keeps the order of the rows, and curriculum.by chooses another; leave one of them out"
        )


def check_replaced_groups(cfg: DictConfig, *, num_processes: int) -> None:
    """Raises: ConfigError, where dynamic sampling or replay cannot put groups in the place of others once advantages are known."""
    trainer = cfg.trainer
    for key, value, low in (
        ("dynamic_sampling_rounds", cfg.dynamic_sampling_rounds, 0),
        ("replay.num_groups", cfg.replay.num_groups, 0),
        ("replay.max_age", cfg.replay.max_age, 1),
    ):
        if value < low:
            raise ConfigError(f"{key} must be {low} or more, got {value}")
    _check_read(cfg, "replay", switch="num_groups", off=0)
    key = " and ".join(key for key in ("dynamic_sampling_rounds", "replay.num_groups") if OmegaConf.select(cfg, key))
    if not key:
        return
    check_whole_groups(cfg, num_processes=num_processes, reason=f"{key}: whole groups are replaced within a process")
    whitening = cfg.advantage_whitening or ALGORITHMS[cfg.algorithm].whitening
    over_batch = [
        name
        for name, is_so in (
            (f"advantage_whitening={whitening}", whitening == "batch"),
            ("trainer.scale_rewards=batch", str(trainer.scale_rewards) == "batch"),
            (
                "trainer.multi_objective_aggregation=normalize_then_sum",
                trainer.multi_objective_aggregation == "normalize_then_sum",
            ),
        )
        if is_so
    ]
    if over_batch:
        raise ConfigError(
            f"{key}: groups of several batches are mixed, and {', '.join(over_batch)} measures advantages by the batch each comes from"
        )
    if cfg.algorithm == "ppo":
        raise ConfigError(f"{key}: needs groups that can be without signal; the advantages of algorithm ppo never are")
    if cfg.replay.num_groups and uses_fsdp() and not trainer.use_vllm:
        raise ConfigError(
            "replay.num_groups needs the log-probabilities completions were sampled with, which generation under FSDP does not "
            "give; use trainer.use_vllm=true, ddp, or zero1 to zero3"
        )
    if cfg.replay.num_groups and trainer.sync_ref_model:
        raise ConfigError(
            "replay.num_groups keeps the reference model's log-probabilities, which trainer.sync_ref_model changes"
        )


@dataclass
class RewardWorkerSettings:
    """Rewards that are computed in processes of their own."""

    rewards: list[str] = field(default_factory=list)
    """Names, as in `rewards`, of those that are slow or not to be trusted."""
    num_workers: int = 2
    """Worker processes of each training process."""
    seconds_per_call: float = 5.0
    """Time limit of a call; its sample then has no reward."""
    seconds_per_batch: float = 120.0
    """Time limit of a batch; samples that are left then have no reward."""
    memory_gib: float | None = 8.0
    """Address space of a worker (GiB): a call that wants more has no reward; null: no limit, which CUDA in a worker needs."""


def check_reward_workers(cfg: DictConfig) -> None:
    """Raises: ConfigError, for an unknown reward, or limits that are out of range or that nothing reads."""
    section, named = cfg.reward_workers, [str(name) for name in cfg.rewards]
    for name in section.rewards:
        if name not in named:
            raise ConfigError(
                f"reward_workers.rewards: the run has no reward {name!r}; it has {', '.join(named)}{nearest(name, named)}"
            )
    for key in ("num_workers", "seconds_per_call", "seconds_per_batch", "memory_gib"):
        if section[key] is not None and not section[key] > 0:
            raise ConfigError(f"reward_workers.{key} must be more than 0, got {section[key]:g}")
    if not section.rewards:
        _check_read(cfg, "reward_workers", switch="rewards", off=[])
        return
    if section.seconds_per_batch < section.seconds_per_call:
        raise ConfigError(
            f"reward_workers.seconds_per_batch {section.seconds_per_batch:g} ends a batch before "
            f"reward_workers.seconds_per_call {section.seconds_per_call:g} ends a call; set it higher"
        )
    if section.seconds_per_batch >= cfg.trainer.ddp_timeout:
        raise ConfigError(
            f"reward_workers.seconds_per_batch {section.seconds_per_batch:g} is not below trainer.ddp_timeout "
            f"{cfg.trainer.ddp_timeout:g}, after which the other processes give up on this one; set it lower"
        )


@dataclass
class EvaluationSettings:
    """Answers to held-out problems during training; TRL's keys say when, and how many responses each problem gets."""

    temperature: float | None = None
    """Temperature of the responses that `eval_accuracy` counts; 0 is greedy; null: trainer.temperature."""
    greedy: bool = False
    """One greedy response more to each problem: `eval_greedy_accuracy`."""


def check_evaluation(cfg: DictConfig) -> None:
    """Raises: ConfigError, for settings that nothing reads, or a temperature out of range."""
    idle = changed(cfg, "evaluation")
    if not idle:
        return
    trainer, temperature = cfg.trainer, cfg.evaluation.temperature
    if str(trainer.eval_strategy) == "no" and not trainer.eval_on_start:
        raise ConfigError(
            f"{', '.join(idle)}: nothing reads it without trainer.eval_strategy; set that, or leave it out"
        )
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ConfigError(f"evaluation.temperature must be 0 (greedy) or more, got {temperature:g}")
    if temperature == 0 and (trainer.num_generations_eval or trainer.num_generations) > 1:
        raise ConfigError("evaluation.temperature=0 gives equal responses: set trainer.num_generations_eval=1")
    if not trainer.use_vllm and uses_fsdp():
        raise ConfigError(f"{', '.join(idle)}: under FSDP transformers generates, which does not read it; use vLLM")


@dataclass
class RunConfig:
    """One run. `model` and `trainer` hold the fields of TRL's ModelConfig and GRPOConfig."""

    task: str = MISSING
    """Name of a task, or `path/to/file.py:TASK`."""
    format: str = MISSING
    """Name of one of the task's formats, or `pkg.module:function`, or `file.py:function`."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Weight by reward name; a name is one of the task's, or `pkg.module:function`, or `file.py:function`."""
    reward_parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keyword arguments by reward name: numbers that the reward's docstring names."""
    algorithm: str = "grpo"
    """The estimator that turns rewards into advantages: a name of `algorithms.ALGORITHMS`."""
    advantage_whitening: str | None = None
    """`batch` or `none`; null: as the algorithm has it."""
    kl_tokens: str | None = None
    """Regular expression: the KL penalty is taken at tokens whose whole text it matches, and no other; null: at every token."""
    soft_overlong_tokens: int = 0
    """Tokens before max_completion_length over which a penalty grows from 0 to -1 (DAPO, eq. 13); 0: no penalty."""
    dynamic_sampling_rounds: int = 0
    """Times at most that groups without signal are replaced by fresh prompts (DAPO, eq. 11)."""
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    """Size of a batch, and work left out of the training phase."""
    critic: CriticSettings = field(default_factory=CriticSettings)
    """The value model of `algorithm: ppo`."""
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)
    """The order in which problems come."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """Answers to held-out problems during training."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """The engine that generates completions."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Solved groups trained on once more."""
    reward_workers: RewardWorkerSettings = field(default_factory=RewardWorkerSettings)
    """Rewards computed in processes of their own."""
    give_up_after: int = 30
    """Rollout batches in a row without any reward after which the run stops (0 = never)."""
    max_generated_tokens: int | None = None
    """Completion tokens after which training stops and by which a linear learning rate falls; null: steps decide."""
    output_dir: str | None = None
    """Run folder; null means outputs/<task>/<run_name>-<UTC time>."""
    data: dict[str, Any] = field(default_factory=lambda: dict(DATA_KEYS))
    """The rows: source, split_rule, num_train_rows, num_eval_rows, seed, and arguments of the task's `load`."""
    model: Any = None
    """Fields of trl.ModelConfig."""
    trainer: Any = None
    """Fields of trl.GRPOConfig."""


def check_algorithm(cfg: DictConfig, *, num_processes: int) -> None:
    """Raises: ConfigError, in one line with every key that contradicts the algorithm the recipe names."""
    name, trainer = str(cfg.algorithm), cfg.trainer
    if name not in ALGORITHMS:
        raise ConfigError(
            f"there is no algorithm {name!r}; there is {', '.join(ALGORITHMS)}{nearest(name, list(ALGORITHMS))}"
        )
    wrong = {
        f"trainer.{key}": allowed[0]
        for key, allowed in ALGORITHMS[name].requires.items()
        if str(trainer[key]) not in allowed
    }
    if name == "dapo" and (trainer.epsilon_high or trainer.epsilon) <= trainer.epsilon:
        wrong["trainer.epsilon_high"] = "0.28"
    if name != "grpo" and trainer.multi_objective_aggregation != "sum_then_normalize":
        wrong["trainer.multi_objective_aggregation"] = "sum_then_normalize"
    at_once = trainer.per_device_train_batch_size * num_processes
    num_slices = generated_at_once(cfg, num_processes=num_processes) // at_once
    # Off-policy, the loss of RAFT's completions is a clipped ratio and no likelihood.
    if name == "raft" and num_slices > trainer.gradient_accumulation_steps:
        wrong["trainer.steps_per_generation"] = str(trainer.gradient_accumulation_steps)
    if name == "raft" and cfg.replay.num_groups:
        wrong["replay.num_groups"] = "0"
    if wrong:
        raise ConfigError(f"algorithm {name} needs {' '.join(f'{key}={value}' for key, value in wrong.items())}")
    if name == "remax":
        # transformers' own generate, which FSDP needs, has no greedy response beside the sampled ones.
        if not trainer.use_vllm and uses_fsdp():
            raise ConfigError(
                "algorithm remax draws a greedy response to each prompt, which FSDP cannot yet; use zero2 or vLLM"
            )
        check_whole_groups(
            cfg, num_processes=num_processes, reason="algorithm remax needs whole groups in each process"
        )


def check_limits(cfg: DictConfig) -> None:
    """Raises: ConfigError, for a number or choice at the top level of a recipe that is out of range."""
    trainer = cfg.trainer
    if cfg.give_up_after < 0:
        raise ConfigError(f"give_up_after must be 0 or more, got {cfg.give_up_after}")
    if cfg.max_generated_tokens is not None and (cfg.max_generated_tokens < 1 or trainer.warmup_steps):
        raise ConfigError(
            f"max_generated_tokens must be at least 1, and its learning rate has no warm-up; got {cfg.max_generated_tokens} "
            f"with trainer.warmup_steps {trainer.warmup_steps:g}"
        )
    if cfg.advantage_whitening not in (None, *WHITENINGS):
        raise ConfigError(
            f"advantage_whitening: there is no {cfg.advantage_whitening!r}; there is {', '.join(WHITENINGS)}, and null for the algorithm's own"
        )
    if trainer.multi_objective_aggregation == "normalize_then_sum":
        ignored = {"advantage_whitening": cfg.advantage_whitening, "soft_overlong_tokens": cfg.soft_overlong_tokens}
        for key, value in ignored.items():
            if value:
                raise ConfigError(
                    f"{key}={value} with trainer.multi_objective_aggregation=normalize_then_sum, which whitens each reward over "
                    f"the batch itself; leave {key} out, or use sum_then_normalize"
                )
    if cfg.kl_tokens is not None:
        if trainer.beta == 0:
            raise ConfigError(
                f"kl_tokens={cfg.kl_tokens!r} says where the KL penalty is taken, and trainer.beta=0 takes none; set trainer.beta, or leave it out"
            )
        try:
            re.compile(cfg.kl_tokens)
        except re.error as error:
            raise ConfigError(f"kl_tokens={cfg.kl_tokens!r} is no regular expression: {error}") from None
    # Without trainer.max_completion_length, which is null there, nothing is ever overlong.
    if not 0 <= cfg.soft_overlong_tokens < (trainer.max_completion_length or 1):
        raise ConfigError(
            f"soft_overlong_tokens must be at least 0 and less than trainer.max_completion_length {trainer.max_completion_length}, "
            f"got {cfg.soft_overlong_tokens}"
        )


@dataclass
class PretrainingConfig:
    """One supervised run (sft.py). `trainer` holds the fields of TRL's SFTConfig."""

    task: str = MISSING
    """The task whose folder the run goes to."""
    format: str = MISSING
    """Format by name; each task in `data` has it."""
    output_dir: str | None = None
    """Run folder; null means outputs/<task>/<run_name>-<UTC time>."""
    data: dict[str, Any] = field(default_factory=dict)
    """By task, the arguments of its `load`: the problems that stages draw from."""
    scratch: dict[str, Any] = field(default_factory=dict)
    """A model from nothing: the tokenizer's vocab_size, max_length (tokens), and the shape; read where no model is named."""
    sharpen: float = 1.0
    """Factor on the logits as training starts, by the weight of the norm before the head: small models are right long before they are sure."""
    new_tokens: list[list[str]] = field(default_factory=list)
    """Pairs of texts: the first becomes a token of the model that is named, with an embedding near that of the second, a token it has."""
    stages: list[Any] = MISSING
    """In order: seed and, by task, num_rows and the habits of the writer."""
    model: Any = None
    """Fields of trl.ModelConfig; model_name_or_path is the model to go on from, null for a new one."""
    trainer: Any = None
    """Fields of trl.SFTConfig."""


def changed(cfg: DictConfig, section: str) -> list[str]:
    """The keys of a section whose values are not the defaults of its dataclass."""
    settings: Any = OmegaConf.to_object(cfg[section])
    standing = vars(type(settings)())
    return [f"{section}.{key}" for key, value in vars(settings).items() if value != standing[key]]


def features(cfg: DictConfig) -> dict[str, Any]:
    """Keyword arguments of TinyZeroTrainer that a recipe's own keys stand for."""
    sections = ("batching", "critic", "curriculum", "evaluation", "replay")
    keys = (
        *("give_up_after", "algorithm", "advantage_whitening", "soft_overlong_tokens", "dynamic_sampling_rounds"),
        *("max_generated_tokens", "kl_tokens"),
    )
    ours = {key: cfg[key] for key in keys} | {key: OmegaConf.to_object(cfg[key]) for key in sections}
    return ours | {"offload": cfg.generation.offload, "stop": list(cfg.generation.stop)}


def _check_read(cfg: DictConfig, section: str, *, switch: str, off: Any) -> None:
    """Raises: ConfigError, where keys of a section are set and the key that switches it on is not."""
    if cfg[section][switch] == off and (idle := changed(cfg, section)):
        raise ConfigError(f"{', '.join(idle)}: nothing reads it without {section}.{switch}; set that, or leave it out")
