"""Recipes to checked runs, in four gates, before a model loads.

    recipe + command line -> `composition` (names and types, from `schema` and `keys`)
                          -> `method` (the algorithm and its numbers) and the checks of each section
                          -> `checks` (rows, lengths, rewards)

A mistake is a ConfigError of one line. A rule between two keys stands in the file of the section that owns the key.
"""

from tinyzero_trl.config.addresses import INSIST, check_host, free_port, is_on_this_machine
from tinyzero_trl.config.batch_sizes import accumulated, generated_at_once
from tinyzero_trl.config.composition import (
    compose,
    folder_name_fault,
    show,
    sum_gradients_in_float32,
    trainer_arguments,
    without_options,
)
from tinyzero_trl.config.generation import (
    ADAPTER_RANKS,
    ENGINES,
    engine_of_evaluation,
    has_gpu,
    memory_share,
    several,
    shares_gpus,
    weight_transfer,
    why_merged,
)
from tinyzero_trl.config.method import check_numbers
from tinyzero_trl.config.processes import (
    CONFIG_VARIABLE,
    accelerate_config_in_use,
    check_to_launch,
    read_accelerate_config,
)
from tinyzero_trl.config.recipes import ACCELERATE_CONFIGS, RECIPES, list_recipes
from tinyzero_trl.config.settings import (
    BatchingSettings,
    CriticSettings,
    CurriculumSettings,
    EvaluationSettings,
    ReplaySettings,
    features,
)
from tinyzero_trl.config.sharding import Sharding, sharding_here, sharding_of

__all__ = [
    "ACCELERATE_CONFIGS",
    "ADAPTER_RANKS",
    "CONFIG_VARIABLE",
    "ENGINES",
    "INSIST",
    "RECIPES",
    "BatchingSettings",
    "CriticSettings",
    "CurriculumSettings",
    "EvaluationSettings",
    "ReplaySettings",
    "Sharding",
    "accelerate_config_in_use",
    "accumulated",
    "check_host",
    "check_numbers",
    "check_to_launch",
    "compose",
    "engine_of_evaluation",
    "features",
    "folder_name_fault",
    "free_port",
    "generated_at_once",
    "has_gpu",
    "is_on_this_machine",
    "list_recipes",
    "memory_share",
    "read_accelerate_config",
    "several",
    "sharding_here",
    "sharding_of",
    "shares_gpus",
    "show",
    "sum_gradients_in_float32",
    "trainer_arguments",
    "weight_transfer",
    "why_merged",
    "without_options",
]
