"""Models before they are loaded: where one is, what its files hold, its tokenizer, its adapter, the arguments TRL loads it with.

    name -> `location` -> `inspection` (small files, no weights) -> `tokens` (tokenizer, prompts as ids) -> `policy` (arguments of TRL)

`identity` tells which weights a folder holds, `adapters` merges a LoRA adapter into its model, and `stop_strings` has the rule
that ends a completion: `is_truncated` is asked by our sampler, by vLLM's callers and by the trainer.
"""

from tinyzero_trl.models.identity import identity_of, model_files, weights_of
from tinyzero_trl.models.inspection import json_object
from tinyzero_trl.models.location import EVALUATED, TRAINED, ModelLocation, load_path, locate, read_record
from tinyzero_trl.models.policy import CheckedModel, checked_start, init_arguments, policy_arguments, settle_adapter
from tinyzero_trl.models.stop_strings import StopStrings, check_stop, is_truncated
from tinyzero_trl.models.tokens import check_prompts, fitted, matching_ids, prompt_ids, prompts_ids

__all__ = [
    "EVALUATED",
    "TRAINED",
    "CheckedModel",
    "ModelLocation",
    "StopStrings",
    "check_prompts",
    "check_stop",
    "checked_start",
    "fitted",
    "identity_of",
    "init_arguments",
    "is_truncated",
    "json_object",
    "load_path",
    "locate",
    "matching_ids",
    "model_files",
    "policy_arguments",
    "prompt_ids",
    "prompts_ids",
    "read_record",
    "settle_adapter",
    "weights_of",
]
