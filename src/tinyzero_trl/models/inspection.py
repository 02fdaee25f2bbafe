"""Checks of a model's files before its weights are read. Training and evaluation refuse a bad model with the same one line.

Names and shapes of the weights are compared with the model that config.json describes, which is created on device `meta`: that
takes a tenth of a second and no memory. Of a hub model that is not downloaded yet, only config.json and tokenizer are checked.
"""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl import hub
from tinyzero_trl.failures import ConfigError, first_line, nearest
from tinyzero_trl.models.location import ModelLocation
from tinyzero_trl.task import raised

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files of weights that transformers looks for, in its order."""
NUM_NAMED = 3
"""Number of weights, modules or tokens that a message names; it counts the others."""
OF_THE_DEVICE = (
    *("device_map", "max_memory", "offload_folder", "low_cpu_mem_usage"),
    *("quantization_config", "tp_plan", "tp_size"),
)
"""Arguments of `from_pretrained` about the device that weights are loaded to; they do not describe the model."""
OTHER_FILES = ("subfolder", "variant", "gguf_file", "state_dict")
"""Arguments of `from_pretrained` that make it read other files than those checked here."""


@cache
def note(line: str) -> None:
    """Print a line on stderr, once, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {line}", file=sys.stderr, flush=True)


def config_of(
    location: ModelLocation,
    *,
    typed: str,
    revision: str | None = None,
    trust_remote_code: bool | None = None,
    writes_text: bool = True,
) -> PreTrainedConfig:
    """The model's config. With `writes_text`, a model that does not generate text is refused.

    typed: the words in front of the path on the command line. trust_remote_code: None if the command has no option to allow it.
    Raises: ConfigError.
    """
    import transformers
    from transformers import AutoConfig

    subject, folder = _subject(location, typed), Path(location.path)
    given = json_object(folder / "config.json", subject) if folder.is_dir() else {}
    if folder.is_dir():
        model_type = given.get("model_type")
        is_remote = "AutoConfig" in (given.get("auto_map") or {})
        known = list(transformers.CONFIG_MAPPING)
        if not model_type and not is_remote:
            raise ConfigError(
                f"{subject}: config.json names no model_type, such as llama or qwen2; take the model's own"
            )
        if model_type not in known and not is_remote:
            raise ConfigError(
                f"{subject}: config.json names the model_type {model_type!r}, which transformers {transformers.__version__} does not "
                f"know{nearest(str(model_type), known)}"
            )
        if model_type not in known and not trust_remote_code:
            allow = (
                "; trainer.trust_remote_code=true runs it, if you trust it"
                if trust_remote_code is False
                else ", which is not run"
            )
            raise ConfigError(f"{subject} needs Python code that came with it{allow}")
        if (folder / "generation_config.json").exists():
            json_object(folder / "generation_config.json", subject)
    else:
        hub.reached()
    try:
        config = AutoConfig.from_pretrained(location.path, revision=revision, trust_remote_code=bool(trust_remote_code))
    except Exception as error:  # each model type reads the file with a class of its own, which may raise anything
        if not folder.is_dir() and isinstance(error, OSError):
            raise ConfigError(f"{subject}: {hub.missing_model(location.path)}") from error
        raise ConfigError(f"{subject}: config.json describes no model: {_reason(error)}") from error
    if writes_text:
        _check_generates(config, subject)
    return config


def class_of(config: PreTrainedConfig) -> Any:
    """The class that loads a model of this config: AutoModelForCausalLM if the type has a text model, or else the class it names."""
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)


def class_name_of(config: PreTrainedConfig) -> str:
    """Name of the causal language model class of this config's type."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "LlamaForCausalLM"))


def empty_model(
    location: ModelLocation, config: PreTrainedConfig, *, typed: str, has_head: bool = True, **arguments: Any
) -> Any:
    """The model without weights, on device `meta`, after a check of its files; None if they are not downloaded.

    has_head: False leaves the head out. arguments: those of `from_pretrained`. An adapter's files are checked too, but the
    result is the model without the adapter. Raises: ConfigError that names the file or the weights.
    """
    subject, folder = _subject(location, typed), _folder_of(location, arguments.get("revision"))
    if folder is None or "gguf_file" in arguments:
        return None
    if not any(arguments.get(name) for name in OTHER_FILES):
        _check_files(folder, subject)
    # Quantized files can be read only with their library, which often needs a GPU.
    if getattr(config, "quantization_config", None) is not None:
        return None
    if not has_head:
        from transformers import AutoModel

        return _described(folder, AutoModel, subject, arguments)
    model = _described(folder, class_of(config), subject, arguments)
    if location.adapter:
        _check_adapter(model, location, typed)
        # PEFT has put modules into that model, so a new one is made.
        return _described(folder, class_of(config), subject, arguments)
    return model


@contextmanager
def whole_weights() -> Iterator[None]:
    """Load models whole in the block, although ZeRO-3 would shard their weights as they load.

    From the moment TrainingArguments are created, transformers knows of ZeRO-3, and then refuses a device_map too.
    """
    from transformers.integrations import deepspeed

    held = deepspeed._hf_deepspeed_config_weak_ref and deepspeed._hf_deepspeed_config_weak_ref()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if held is not None:
            deepspeed.set_hf_deepspeed_config(held)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, *, subject: str) -> None:
    """Refuse a tokenizer with tokens that have no embedding and can occur in a text. Raises: ConfigError that names them.

    Special tokens without an embedding may exist for other models of a family (Gemma 3 1B has those for images): these are
    only noted, unless they begin, end or pad a text, or the chat template writes them.
    """
    beyond = beyond_embeddings(tokenizer, config)
    if not beyond:
        return
    num_embeddings = config.get_text_config().vocab_size
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    template = str(tokenizer.chat_template)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    occurring = [token for token in beyond if token not in special or token in used or token in template]
    if occurring:
        raise ConfigError(
            f"{subject} has {num_embeddings} embeddings, and its tokenizer has tokens beyond them: {_named(map(repr, occurring))}; "
            "take the tokenizer that the model was saved with, or save the model resized for this one (resize_token_embeddings)"
        )
    note(
        f"{subject} has no embedding for {_named(map(repr, beyond))} of its tokenizer; a prompt with one of them would be refused"
    )


def beyond_embeddings(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> list[str]:
    """Tokens whose id has no row among the model's embeddings, lowest id first."""
    num_embeddings = getattr(config.get_text_config(), "vocab_size", None)
    if num_embeddings is None:
        return []
    numbers = {token: number for token, number in tokenizer.get_vocab().items() if number >= num_embeddings}
    return sorted(numbers, key=lambda token: numbers[token])


def check_lora(model: Any, settings: Any) -> None:
    """Refuse LoRA settings (trl.ModelConfig) that do not fit the empty `model`.

    Raises: ConfigError that names the model's modules.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from trl import get_peft_config

    names = [name for name, _ in model.named_modules() if name]
    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if type(module).__name__ in ("Linear", "Conv1D")
        }
    )
    for key in ("lora_target_modules", "lora_modules_to_save"):
        for given in _list(getattr(settings, key)):
            if given != "all-linear" and not _is_module(
                given, names, is_pattern=isinstance(getattr(settings, key), str)
            ):
                raise ConfigError(
                    f"model.{key}: the model has no module {given!r}; it has {', '.join(linear)}{nearest(given, linear)}"
                )
    parameters = [name for name, _ in model.named_parameters()]
    for given in _list(settings.lora_target_parameters):
        if not any(name == given or name.endswith(f".{given}") for name in parameters):
            raise ConfigError(
                f"model.lora_target_parameters: the model has no parameter {given!r}; it has {_named(parameters)}"
            )
    try:
        adapted = _adapted(model, get_peft_config(settings))
    except Exception as error:  # PEFT's own checks, and those of `re` on a person's pattern
        raise ConfigError(f"model.lora_*: {first_line(error)}; the model has {', '.join(linear)}") from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise ConfigError(
            "model.lora_target_modules: an adapter on the head (lm_head) is not trained by TRL, which multiplies by its weight "
            "directly; leave it out, or put it into model.lora_modules_to_save"
        )


def _subject(location: ModelLocation, typed: str) -> str:
    if location.adapter is None:
        return f"{typed}{location.path}"
    return f"{typed}{location.adapter}: the model below the adapter, {location.path}"


def _folder_of(location: ModelLocation, revision: str | None) -> Path | None:
    """Folder of the model's files; None if they are yet to be fetched from the hub."""
    if Path(location.path).is_dir():
        return Path(location.path)
    if hub.reached()[0]:
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(location.path, "config.json", revision=revision)
    return Path(file).parent if isinstance(file, str) else None


def json_object(file: Path, subject: str) -> dict[str, Any]:
    """Content of the JSON file, which belongs to the model `subject`. Raises: ConfigError if it is no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{subject}: {file.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{subject}: {file.name} is not JSON: {first_line(error)}; copy it again") from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{subject}: {file.name} holds a {type(content).__name__}, and has to be an object; copy it again"
        )
    return content


def _check_generates(config: PreTrainedConfig, subject: str) -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    named = (config.architectures or [None])[0]
    named_class = getattr(transformers, named or "", None)
    what = named or config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{subject} is a {what}, an encoder with a decoder; a causal language model is needed, which goes on with a text"
        )
    # Model types for masked words have a switch, is_decoder, that makes them causal.
    is_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", True)
    can_generate = getattr(named_class, "can_generate", lambda: True)()
    if is_encoder or not can_generate:
        raise ConfigError(
            f"{subject} is a {what}, which writes no text; a causal language model is needed, such as a LlamaForCausalLM"
        )


def _check_files(folder: Path, subject: str) -> None:
    """Refuse missing or damaged files of weights."""
    found = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ConfigError(f"{subject} has no weights: there is no model.safetensors{_instead(folder)}")
    names = [found]
    if found.endswith(".index.json"):
        weight_map = json_object(folder / found, subject).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ConfigError(
                f"{subject}: {found} has no weight_map, which names the file of each weight; copy it again"
            )
        names = sorted(set(weight_map.values()))
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise ConfigError(
                f"{subject}: {found} names {_named(absent)}, and there is no such file; copy the model again"
            )
    for name in names:
        if reason := _why_not_weights(folder / name):
            raise ConfigError(f"{subject}: {name}, of {(folder / name).stat().st_size:,} bytes, {reason}")
    if found.startswith("pytorch_model"):
        note(f"{subject} has its weights in {found}, which is read without running code in it (torch's weights_only)")


def _instead(folder: Path) -> str:
    """End of a message about missing weights: the files of other formats in the folder, and what to do with them."""
    if gguf := sorted(path.name for path in folder.glob("*.gguf")):
        return f", only {_named(gguf)}; GGUF is not read here: take the folder of the model that it was made from"
    others = sorted(path.name for kind in ("*.safetensors", "*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
    if others:
        return f", only {_named(others)}; save the model with save_pretrained"
    return "; copy the model again"


def _why_not_weights(file: Path) -> str | None:
    """The reason why one file of weights cannot be loaded, or None."""
    with file.open("rb") as stream:
        if stream.read(40).startswith(b"version https://git-lfs"):
            return "is a pointer of Git LFS in the place of the weights; get them with `git lfs pull`"
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt"):
                return None
        import torch

        torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # safetensors, zip and pickle raise errors of their own
        if "global" in str(error).lower():  # torch names the global that is no tensor
            return "is a pickle that holds more than weights, and is not opened; take the model as safetensors"
        return f"is cut off or damaged ({_reason(error)}); copy it again"
    return None


def _described(folder: Path, model_class: Any, subject: str, arguments: Mapping[str, Any]) -> Any:
    """The empty model, after comparing names and shapes of its weights with those in the files."""
    from transformers.utils import logging

    # Attention kernels of other libraries are left out, because they cannot run on `meta`.
    attention = arguments.get("attn_implementation")
    left_out = {
        *OF_THE_DEVICE,
        "revision",
        *(["attn_implementation"] if attention not in (None, "eager", "sdpa") else []),
    }
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # hides transformers' own table of differences
    logging.disable_progress_bar()
    try:
        with whole_weights():
            model, found = model_class.from_pretrained(
                folder, **kept, device_map="meta", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:  # the model's class may raise anything about its config or a person's arguments
        own = [f"{name}={value!r:.60}" for name, value in kept.items() if name not in ("dtype", "attn_implementation")]
        given = f" with {_named(own)}" if own else ""
        raise ConfigError(f"{subject} cannot be loaded{given}: {_reason(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if found["missing_keys"]:
        raise ConfigError(
            f"{subject} lacks weights that its config.json asks for: {_named(sorted(found['missing_keys']))}; config.json and "
            "weights have to be of one model"
        )
    if found["mismatched_keys"]:
        name, has, wanted = min(found["mismatched_keys"])
        others = f" ({len(found['mismatched_keys'])} weights differ so)" if len(found["mismatched_keys"]) > 1 else ""
        raise ConfigError(
            f"{subject}: {name} has the shape {list(has)}, and config.json asks for {list(wanted)}{others}; config.json and weights "
            "have to be of one model"
        )
    if found["error_msgs"]:
        raise ConfigError(f"{subject} cannot be loaded: {' '.join(str(found['error_msgs'][0]).split())}")
    unused = sorted(name for name in found["unexpected_keys"] if not name.startswith("lm_head."))
    if unused:
        note(f"{subject} has weights that its architecture does not use: {_named(unused)}")
    return model


def _check_adapter(model: Any, location: ModelLocation, typed: str) -> None:
    """Put the adapter on the empty model, and compare names and shapes of its weights with those in its file.

    Raises: ConfigError.
    """
    from peft import PeftConfig, get_peft_model_state_dict

    assert location.adapter is not None
    subject, folder = f"{typed}{location.adapter}", Path(location.adapter)
    found = next(
        (name for name in ("adapter_model.safetensors", "adapter_model.bin") if (folder / name).is_file()), None
    )
    if found is None:
        raise ConfigError(
            f"{subject} has no weights of the adapter: there is no adapter_model.safetensors; save it again"
        )
    if reason := _why_not_weights(folder / found):
        raise ConfigError(f"{subject}: {found}, of {(folder / found).stat().st_size:,} bytes, {reason}")
    try:
        adapted = _adapted(model, PeftConfig.from_pretrained(str(folder)))
    except Exception as error:  # PEFT's own checks
        raise ConfigError(f"{subject}: adapter_config.json does not fit {location.path}: {_reason(error)}") from error
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise ConfigError(
            f"{subject} is a {adapted.active_peft_config.peft_type.value} adapter, which cannot be made one with its model; LoRA can"
        )
    wanted = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(adapted).items()}
    has = _shapes(folder / found)
    if missing := sorted(wanted.keys() - has.keys()):
        raise ConfigError(
            f"{subject} lacks weights that adapter_config.json asks for on {location.path}: {_named(missing)}"
        )
    if other := sorted(name for name in wanted if wanted[name] != has[name]):
        raise ConfigError(
            f"{subject}: {other[0]} has the shape {list(has[other[0]])}, and on {location.path} it would be {list(wanted[other[0]])}; the "
            "adapter is of another model"
        )


def _adapted(model: Any, settings: Any) -> Any:
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns again when the real adapter is created
        return get_peft_model(model, settings, low_cpu_mem_usage=True)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    import torch

    return {
        name: tuple(value.shape) for name, value in torch.load(file, map_location="meta", weights_only=True).items()
    }


def _is_module(given: str, names: Iterable[str], *, is_pattern: bool) -> bool:
    """True if PEFT would find a module by this name; with `is_pattern`, by this regular expression."""
    if is_pattern:
        try:
            return any(re.fullmatch(given, name) for name in names)
        except re.error:
            return True  # PEFT explains what is wrong with it
    return any(name == given or name.endswith(f".{given}") for name in names)


def _list(value: Any) -> list[str]:
    return [str(item) for item in ([value] if isinstance(value, str) else value or [])]


def _named(names: Iterable[str]) -> str:
    """The first names as a list in words, and the number of the others."""
    given = list(names)
    more = f" and {len(given) - NUM_NAMED} more" if len(given) > NUM_NAMED else ""
    return ", ".join(given[:NUM_NAMED]) + more


def _reason(error: BaseException) -> str:
    """An error as one line, with its class unless it is a ValueError or OSError, whose messages stand alone."""
    return first_line(error) if isinstance(error, (ValueError, OSError)) else raised(error)
