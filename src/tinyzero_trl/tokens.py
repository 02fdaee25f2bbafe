"""Prompts as token ids, the same for checks, training and evaluation; and the tokenizer that makes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from tinyzero_trl import hub
from tinyzero_trl.config import model_path
from tinyzero_trl.failures import ConfigError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(tokenizer: Any, prompt: str | list[dict[str, str]], **template: Any) -> list[int]:
    """Token ids of one prompt, as training and generation see it: an assistant turn at its end stays open.

    A text that already begins with the tokenizer's bos token gets no second one.
    """
    return prompts_ids(tokenizer, [prompt], **template)[0]


def prompts_ids(tokenizer: Any, batch: list[Any], **template: Any) -> list[list[int]]:
    """`prompt_ids` of several prompts, all text or all messages."""
    if isinstance(batch[0], str):
        has_bos = [bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token) for prompt in batch]
        plain = tokenizer(text=batch)["input_ids"]
        bare = tokenizer(text=batch, add_special_tokens=False)["input_ids"] if any(has_bos) else plain
        return [second if has else first for first, second, has in zip(plain, bare, has_bos, strict=True)]
    ids: list[list[int]] = []
    for prompt in batch:
        is_open = prompt[-1]["role"] == "assistant"
        encoded = tokenizer.apply_chat_template(
            prompt,
            add_generation_prompt=not is_open,
            continue_final_message=is_open,
            tokenize=True,
            return_dict=True,
            **template,
        )
        ids.append(list(encoded["input_ids"]))
    return ids


def tokenizer_of(cfg: DictConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, its padding on the left. Raises: ConfigError where it cannot serve generation."""
    from transformers import AutoTokenizer

    name = model_path(cfg.model.model_name_or_path)
    if _looks_local(name) and not Path(name).is_dir():
        raise ConfigError(f"model.model_name_or_path: there is no folder {name}{hub.nearest_model(name)}")
    if _looks_local(name) and not (Path(name) / "config.json").is_file():
        raise ConfigError(f"model.model_name_or_path: {name} is not a model folder (it has no config.json)")
    is_there = _looks_local(name) or hub.reached()[0]
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name,
            revision=cfg.model.model_revision,
            trust_remote_code=bool(cfg.trainer.trust_remote_code),
            padding_side="left",
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        if not _looks_local(name) and (not is_there or isinstance(error, OSError)):
            raise ConfigError(f"model.model_name_or_path={name}: {hub.missing_model(name)}") from error
        raise ConfigError(f"model.model_name_or_path: no tokenizer for {name}: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"the tokenizer of {name} has no eos token, so no completion could end; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or Path(name).exists() or name.count("/") > 1
