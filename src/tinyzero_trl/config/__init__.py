"""Recipes to checked runs, in four gates, before a model loads.

    recipe + command line -> `composition` (names and types, from `schema` and `keys`)
                          -> `check_method` (numbers, and the rules between keys)
                          -> `check_run` (the names' objects, libraries, model, rows, TRL's arguments) -> CheckedRun

A mistake is a ConfigError of one line. A rule between two keys is in the file of the section that owns the key: `sections` (ours),
`batching`, `generation`, `method` (TRL's keys). Settings that are legal but usually mistakes are `warnings`.
"""

from tinyzero_trl.config.addresses import INSIST, check_host, free_port, is_on_this_machine
from tinyzero_trl.config.batching import (
    CPU_TOKENS,
    SHARING_ATTENTION,
    BatchingSettings,
    accumulated,
    check_shared_prompts,
    generated_at_once,
)
from tinyzero_trl.config.composition import (
    check_words,
    compose,
    show,
    sum_gradients_in_float32,
    trainer_arguments,
    why_not_a_folder_name,
    without_options,
)
from tinyzero_trl.config.environment import (
    check_environment,
    check_to_launch,
    is_first_process,
    num_processes_here,
    uses_fsdp,
)
from tinyzero_trl.config.generation import (
    ADAPTER_RANKS,
    ENGINES,
    GenerationSettings,
    engine_of_evaluation,
    has_gpu,
    memory_share,
    several,
    shares_gpus,
    weight_transfer,
    why_merged,
)
from tinyzero_trl.config.method import check_numbers
from tinyzero_trl.config.recipes import (
    ACCELERATE_CONFIGS,
    RECIPES,
    list_recipes,
    names_recipe,
    program_of,
    program_of_words,
    recipe_folders,
    recipe_of_words,
    without_config_dir,
)
from tinyzero_trl.config.rewards import reward_functions
from tinyzero_trl.config.run import CheckedRun, check_method, check_pretraining, check_run, warnings
from tinyzero_trl.config.sections import (
    CriticSettings,
    CurriculumSettings,
    EvaluationSettings,
    ReplaySettings,
    RewardWorkerSettings,
    features,
)
from tinyzero_trl.config.sharding import (
    CONFIG_VARIABLE,
    Sharding,
    accelerate_config_in_use,
    read_accelerate_config,
    sharding_here,
    sharding_of,
)

__all__ = [
    "ACCELERATE_CONFIGS",
    "ADAPTER_RANKS",
    "CONFIG_VARIABLE",
    "CPU_TOKENS",
    "ENGINES",
    "INSIST",
    "RECIPES",
    "SHARING_ATTENTION",
    "BatchingSettings",
    "CheckedRun",
    "CriticSettings",
    "CurriculumSettings",
    "EvaluationSettings",
    "GenerationSettings",
    "ReplaySettings",
    "RewardWorkerSettings",
    "Sharding",
    "accelerate_config_in_use",
    "accumulated",
    "check_environment",
    "check_host",
    "check_method",
    "check_numbers",
    "check_pretraining",
    "check_run",
    "check_shared_prompts",
    "check_to_launch",
    "check_words",
    "compose",
    "engine_of_evaluation",
    "features",
    "free_port",
    "generated_at_once",
    "has_gpu",
    "is_first_process",
    "is_on_this_machine",
    "list_recipes",
    "memory_share",
    "names_recipe",
    "num_processes_here",
    "program_of",
    "program_of_words",
    "read_accelerate_config",
    "recipe_folders",
    "recipe_of_words",
    "reward_functions",
    "several",
    "sharding_here",
    "sharding_of",
    "shares_gpus",
    "show",
    "sum_gradients_in_float32",
    "trainer_arguments",
    "uses_fsdp",
    "warnings",
    "weight_transfer",
    "why_merged",
    "why_not_a_folder_name",
    "without_config_dir",
    "without_options",
]
