"""What a run may say: the keys, types and defaults of a recipe, derived from TRL's own dataclasses."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tinyzero_trl.config.settings import (
    BatchingSettings,
    CriticSettings,
    CurriculumSettings,
    EvaluationSettings,
    GenerationSettings,
    ReplaySettings,
    RewardWorkerSettings,
)

SECTIONS = (
    "model",
    "trainer",
    "batching",
    "critic",
    "curriculum",
    "evaluation",
    "generation",
    "replay",
    "reward_workers",
)
"""Keys of a run whose own keys the schema knows."""
REPLACED: dict[str, str] = {
    "max_prompt_length": "TRL no longer cuts prompts; prompts that do not fit the model are refused at start, with the row named",
    "vllm_device": "use generation.engine=colocate (same GPUs) or generation.engine=server with generation.devices",
    "vllm_dtype": "the policy's own dtype is used; set model.dtype",
    "vllm_max_model_len": "use trainer.vllm_max_model_length",
    "vllm_enable_prefix_caching": "prefix caching is always on now; remove the key",
    "vllm_guided_decoding_regex": "use trainer.vllm_structured_outputs_regex",
    "vllm_importance_sampling_cap": "use trainer.vllm_importance_sampling_clip_max",
    "use_liger_loss": "the language-model head is fused by default now; remove the key",
    "use_liger_kernel": "the language-model head is fused by default now; remove the key",
    "use_transformers_paged": "without vLLM our own sampler generates; remove the key",
    "logging_dir": "use output_dir; trackers write below it",
    "overwrite_output_dir": "a run never overwrites another; choose another output_dir, or trainer.resume_from_checkpoint=true",
    "torch_dtype": "use model.dtype",
    "reward_funcs": "use the mapping rewards: {name: weight}",
    "reward_weights": "use the mapping rewards: {name: weight}",
    "evaluation_strategy": "use trainer.eval_strategy",
    "no_cuda": "use trainer.use_cpu",
    "tokenizer_name_or_path": "the tokenizer is the model's own",
    "hydra": "runs do not use Hydra's folders or logging; see output_dir",
}
"""Keys of older TRL versions, of other trainers and of habit, each with what to write instead."""

OURS: dict[str, str] = {
    "use_vllm": "use generation.engine=server or generation.engine=colocate",
    "vllm_mode": "use generation.engine=server or generation.engine=colocate",
    "vllm_server_base_url": "use generation.server=<url>",
    "vllm_server_host": "use generation.server=<url>",
    "vllm_server_port": "use generation.server=<url>",
    "vllm_server_timeout": "use generation.seconds_to_start",
    "output_dir": "use output_dir at the top level of the recipe",
    "reward_weights": REPLACED["reward_weights"],
    "use_liger_kernel": REPLACED["use_liger_kernel"],
    "use_transformers_paged": REPLACED["use_transformers_paged"],
    "vllm_importance_sampling_cap": REPLACED["vllm_importance_sampling_cap"],
    "log_completions_hub_repo": "rollouts are written to the run folder as parquet; upload them from there",
    "log_completions": "every rollout is written to rollouts/*.parquet in the run folder; remove the key",
    "auto_find_batch_size": "GRPO needs whole groups; lower trainer.per_device_train_batch_size instead",
    "enable_jit_checkpoint": "SIGTERM is handled here: the step ends, a sealed checkpoint is saved, exit code 143",
}
"""Keys TRL still has but a recipe may not set, each with the reason or the replacement."""

DATA_KEYS: dict[str, Any] = {
    "source": MISSING,
    "split_rule": "problem",
    "num_train_rows": None,
    "num_eval_rows": 0,
    "seed": 0,
}
"""Keys of `data` that every task has; its other keys are the keyword arguments of the task's `load`."""


@dataclass
class RunConfig:
    """One run. `model` and `trainer` hold the fields of TRL's ModelConfig and GRPOConfig (or SFTConfig)."""

    task: str = MISSING
    """Name of a task, or `path/to/file.py:TASK`."""
    format: str = MISSING
    """Name of one of the task's formats, or `pkg.module:function`, or `file.py:function`."""
    rewards: dict[str, float] = field(default_factory=dict)
    """Weight by reward name; a name is one of the task's, or `pkg.module:function`, or `file.py:function`."""
    reward_parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By reward name, keyword arguments of the reward: numbers that its docstring names."""
    algorithm: str = "grpo"
    """What rewards become: a name of `algorithms.ALGORITHMS`."""
    advantage_whitening: str | None = None
    """`batch` or `none`; null: as the algorithm has it."""
    soft_overlong_tokens: int = 0
    """Tokens before max_completion_length over which a penalty grows from 0 to -1 (DAPO, eq. 13); 0: no penalty."""
    dynamic_sampling_rounds: int = 0
    """Times at most that groups without signal are replaced by fresh prompts (DAPO, eq. 11)."""
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    """Work left out of the training phase."""
    critic: CriticSettings = field(default_factory=CriticSettings)
    """The value model of `algorithm: ppo`."""
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)
    """Which problems come when."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """How held-out problems are answered during training."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """Who generates completions."""
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    """Solved groups trained on once more."""
    reward_workers: RewardWorkerSettings = field(default_factory=RewardWorkerSettings)
    """Rewards computed in processes of their own."""
    give_up_after: int = 30
    """Number of rollout batches in which nothing earns any reward after which the run stops (0 = never)."""
    max_generated_tokens: int | None = None
    """Completion tokens after which training stops and by which a linear learning rate falls; null: steps decide."""
    output_dir: str | None = None
    """Run folder; null means outputs/<task>/<run_name>-<UTC time>."""
    data: dict[str, Any] = field(default_factory=lambda: dict(DATA_KEYS))
    """Where the rows come from: source, split_rule, num_train_rows, num_eval_rows, seed, and arguments of `load`."""
    model: Any = None
    """Fields of trl.ModelConfig."""
    trainer: Any = None
    """Fields of trl.GRPOConfig or trl.SFTConfig."""


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
    stages: list[Any] = MISSING
    """In order: seed and, by task, num_rows and the habits of the writer."""
    model: Any = None
    """Fields of trl.ModelConfig; model_name_or_path is the model to go on from, null for a new one."""
    trainer: Any = None
    """Fields of trl.SFTConfig."""


def schema_of(config_class: type) -> type:
    """The dataclass with the same init fields and defaults, in types OmegaConf can check (`Any` where it has none)."""
    hints = typing.get_type_hints(config_class)
    fields: list[tuple[str, Any, Any]] = []
    for item in dataclasses.fields(config_class):
        if not item.init:
            continue
        default = _default(item)
        hint = hints[item.name]
        # `true` on the command line means "the newest checkpoint", which TRL's `str | None` would turn into "True".
        if item.name == "resume_from_checkpoint" or not _is_typable(item.name, hint, default):
            hint = Any
        fields.append((item.name, hint, dataclasses.field(default_factory=partial(copy.copy, default))))
    return dataclasses.make_dataclass(config_class.__name__, fields)


def run_schema(trainer_class: type) -> Any:
    """The typed node of a whole run whose trainer takes `trainer_class`."""
    from trl import ModelConfig, SFTConfig

    node = OmegaConf.structured(PretrainingConfig if trainer_class is SFTConfig else RunConfig)
    node.model = OmegaConf.structured(schema_of(ModelConfig))
    node.trainer = OmegaConf.structured(schema_of(trainer_class))
    return node


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain YAML value could be of type `hint`: the check for the fields OmegaConf leaves as Any."""
    if hint is Any:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is None or hint is type(None):
        return value is None
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    if origin is list or hint is list:
        return isinstance(value, list) and (not arguments or all(fits(item, arguments[0]) for item in value))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(hint, type) and hint in (int, str, bool):
        return type(value) is hint
    return True


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None


def _is_typable(name: str, hint: Any, default: Any) -> bool:
    try:
        OmegaConf.structured(dataclasses.make_dataclass("_Probe", [(name, hint, dataclasses.field(default=default))]))
    except (OmegaConfBaseException, ValueError):
        return False
    return True
