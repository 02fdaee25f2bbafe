"""The tokenizer of a model, and prompts as token ids: the same ids in checks, training and evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl import hub
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models.inspection import beyond_embeddings, check_vocabulary, note
from tinyzero_trl.models.location import ModelLocation
from tinyzero_trl.task import raised

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Prompt = str | list[dict[str, str]]
"""A prompt: text, or chat messages."""


def prompt_ids(tokenizer: Any, prompt: str | list[dict[str, str]], **template: Any) -> list[int]:
    """Token ids of one prompt, as training and generation see it. An assistant message at the end stays open.

    A text that begins with the tokenizer's bos token gets no second one.
    """
    return prompts_ids(tokenizer, [prompt], **template)[0]


def prompts_ids(tokenizer: Any, batch: list[Any], **template: Any) -> list[list[int]]:
    """Token ids of several prompts, all of them texts or all of them messages; see `prompt_ids`."""
    if isinstance(batch[0], str):
        has_bos = [bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token) for prompt in batch]
        plain = tokenizer(text=batch)["input_ids"]
        bare = tokenizer(text=batch, add_special_tokens=False)["input_ids"] if any(has_bos) else plain
        return [second if has else first for first, second, has in zip(plain, bare, has_bos, strict=True)]
    ids: list[list[int]] = []
    for prompt in batch:
        encoded = tokenizer.apply_chat_template(prompt, **_turn(prompt), tokenize=True, return_dict=True, **template)
        ids.append(list(encoded["input_ids"]))
    return ids


def matching_ids(tokenizer: Any, pattern: str) -> list[int]:
    """Ids of the tokens whose own text the regular expression matches as a whole, special tokens included; in order."""
    ids = sorted(tokenizer.get_vocab().values())
    texts = tokenizer.batch_decode([[id] for id in ids])
    return [id for id, text in zip(ids, texts, strict=True) if re.fullmatch(pattern, text)]


def rendered(prompt: Prompt, tokenizer: Any) -> str:
    """The text that the chat template writes for a prompt of messages, as `prompt_ids` tokenises it."""
    return str(tokenizer.apply_chat_template(prompt, **_turn(prompt), tokenize=False))


def _turn(prompt: Any) -> dict[str, bool]:
    """Arguments of the chat template: an assistant message at the end is continued, otherwise an assistant turn is opened."""
    is_open = prompt[-1]["role"] == "assistant"
    return {"add_generation_prompt": not is_open, "continue_final_message": is_open}


def tokenizer_of(
    location: ModelLocation,
    *,
    typed: str,
    config: PreTrainedConfig | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The adapter's tokenizer, or else the model's, with padding on the left.

    typed: the words in front of the path on the command line. config: the model's, which must have an embedding for every token;
    None leaves that unchecked. Raises: ConfigError if no tokenizer that can end a text loads.
    """
    from transformers import AutoTokenizer

    is_at_hub = not Path(location.path).is_dir()
    if is_at_hub:
        hub.reached()
    failures = []
    for place in filter(None, (location.adapter, location.path)):
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                place, revision=revision, trust_remote_code=trust_remote_code, padding_side="left"
            )
        except Exception as error:  # transformers, tokenizers and sentencepiece raise errors of their own
            if is_at_hub and place == location.path and isinstance(error, OSError):
                raise ConfigError(f"{typed}{place}: {hub.missing_model(place)}") from error
            failures.append(f"{place}: {raised(error)}")
            continue
        # No warning about a prompt longer than the model: such a prompt is refused elsewhere, with its row named.
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"the tokenizer of {place} has no eos token, so no completion could end; set eos_token in its tokenizer_config.json"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
            note(
                f"the tokenizer of {place} has no pad token; its eos token {tokenizer.eos_token!r} is taken for padding"
            )
        if config is not None:
            check_vocabulary(tokenizer, config, subject=f"{typed}{location.shown}")
        return tokenizer
    raise ConfigError(f"{typed}{location.shown} has no tokenizer that can be loaded ({'; '.join(failures)})")


def fitted(prompts: list[Prompt], tokenizer: Any, *, name: str) -> list[Prompt]:
    """The prompts as the model's chat template accepts them: the same list, or a list without system messages.

    For a template that refuses or drops system messages (Gemma's raises), their text is put in front of the user's, with an
    empty line between, as Gemma 3's template writes it. name: the model's, for the note about it.
    """
    if not any(_has_system(prompt) for prompt in prompts) or not tokenizer.chat_template or _takes_system(tokenizer):
        return prompts
    note(f"the chat template of {name} takes no system message; the system text stands in front of the user's")
    return [_without_system(prompt) if _has_system(prompt) else prompt for prompt in prompts]


def check_prompts(prompts: list[Prompt], tokenizer: Any, config: Any = None, *, name: str, format_name: str) -> None:
    """Refuse prompts that the chat template raises on (tried once for each order of roles), or with tokens that have no embedding.

    config: the model's; None leaves embeddings unchecked. name: the model's. Raises: ConfigError with the template's own message.
    """
    for token in beyond_embeddings(tokenizer, config) if config is not None else []:
        for index, prompt in enumerate(prompts):
            if token in str(prompt):
                raise ConfigError(f"prompt {index} (from 0) has {token!r}, for which {name} has no embedding")
    seen: set[tuple[str, ...]] = set()
    for prompt in prompts:
        roles = () if isinstance(prompt, str) else tuple(message["role"] for message in prompt)
        if not roles or roles in seen:
            continue
        seen.add(roles)
        if not tokenizer.chat_template:
            raise ConfigError(
                f"format {format_name} makes chat messages, and the tokenizer of {name} has no chat template; "
                "use a plain-text format such as base, or an instruct model"
            )
        try:
            prompt_ids(tokenizer, prompt)
        except Exception as error:  # a template is a program, and may raise anything
            raise ConfigError(
                f"the chat template of {name} refuses what format {format_name} makes ({', '.join(roles)}): {raised(error)}; use another "
                "format, or another model"
            ) from error


def _has_system(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and any(isinstance(item, dict) and item.get("role") == "system" for item in prompt)


def _takes_system(tokenizer: Any) -> bool:
    """True if the template writes a system message, or is broken even without one."""
    user = {"role": "user", "content": "What is 2 + 2?"}
    system = {"role": "system", "content": "Answer in Latin numerals."}
    try:
        return system["content"] in tokenizer.apply_chat_template([system, user], tokenize=False)
    except Exception:  # a template is a program, and may raise anything
        try:
            tokenizer.apply_chat_template([user], tokenize=False)
        except Exception:
            return True
        return False


def _without_system(prompt: Any) -> list[dict[str, str]]:
    texts = [message["content"] for message in prompt if message["role"] == "system"]
    others = [dict(message) for message in prompt if message["role"] != "system"]
    if not others or others[0]["role"] != "user":
        return [{"role": "user", "content": "\n\n".join(texts)}, *others]
    others[0]["content"] = "\n\n".join([*texts, others[0]["content"]])
    return others
