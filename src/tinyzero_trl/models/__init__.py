"""Models before a trainer has them: where one is, which weights it has, whether it can be trained, its tokenizer and adapter.

name -> `location` -> `inspection` (small files, no weights) -> `tokens` (tokenizer, prompts as ids) -> `policy` (what TRL loads)
"""

from tinyzero_trl.models.identity import identity_of, model_files, weights_of
from tinyzero_trl.models.inspection import json_object
from tinyzero_trl.models.location import EVALUATED, TRAINED, ModelLocation, load_path, locate, read_record
from tinyzero_trl.models.policy import Start, checked_start, init_arguments, policy_arguments, settle_adapter
from tinyzero_trl.models.stop_strings import StopStrings, check_stop, is_truncated
from tinyzero_trl.models.tokens import check_prompts, fitted, prompt_ids, prompts_ids

__all__ = [
    "EVALUATED",
    "TRAINED",
    "ModelLocation",
    "Start",
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
    "model_files",
    "policy_arguments",
    "prompt_ids",
    "prompts_ids",
    "read_record",
    "settle_adapter",
    "weights_of",
]
