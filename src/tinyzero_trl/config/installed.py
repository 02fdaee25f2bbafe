"""Libraries that a run needs beside our own dependencies: trackers, attention, optimizers. A missing one is named with its command."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tinyzero_trl.failures import ConfigError, first_line, nearest
from tinyzero_trl.installation import with_extra

TRACKERS = {
    "wandb": "wandb", "trackio": "trackio", "tensorboard": "tensorboard", "mlflow": "mlflow", "comet_ml": "comet_ml",
    "swanlab": "swanlab", "clearml": "clearml", "neptune": "neptune", "codecarbon": "codecarbon", "dagshub": "dagshub",
    "dvclive": "dvclive", "flyte": "flytekit", "azure_ml": "azureml", "kubeflow": "kubeflow",
}  # fmt: skip
"""Module by name in `trainer.report_to`."""
PACKAGES = {"azure_ml": "azureml-mlflow", "flyte": "flytekit"}
"""Package that installs a tracker, where it has another name."""
ATTENTION = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "build it from github.com/Dao-AILab/flash-attention, folder hopper"),
}
"""Module and install command of attention implementations beside PyTorch's own; the package `kernels` fetches either."""


def check_trackers(cfg: DictConfig) -> None:
    """Raises: ConfigError, where `trainer.report_to` names a tracker that is unknown or not installed."""
    if reason := next(_tracker_mistakes(cfg), None):
        raise ConfigError(reason)


def warnings(cfg: DictConfig) -> list[str]:
    """Warnings about trackers that will not record anything."""
    if "wandb" in _trackers(cfg.trainer) and not _has_wandb_login():
        return ["trainer.report_to has wandb, and there is no login: run `wandb login`, or set WANDB_MODE=offline"]
    return []


def check_installed(cfg: DictConfig) -> None:
    """Raises: ConfigError, where attention or quantization needs a library that is missing, with the command that installs it."""
    if reason := why_no_attention(cfg.model.attn_implementation):
        raise ConfigError(f"model.attn_implementation={cfg.model.attn_implementation}{reason}")
    wanted = [key for key in ("load_in_4bit", "load_in_8bit") if cfg.model[key]]
    named = [f"model.{key}=true" for key in wanted]
    if any(word in str(cfg.trainer.optim) for word in ("8bit", "paged_", "bnb")):
        named.append(f"trainer.optim={cfg.trainer.optim}")
    if named and importlib.util.find_spec("bitsandbytes") is None:
        instead = "; without it: model.load_in_4bit=false trainer.optim=adamw_torch_fused, for more memory"
        raise ConfigError(
            f"{' and '.join(named)} needs bitsandbytes: pip install {with_extra('quantization')}{instead if len(named) > 1 else ''}"
        )


def check_optimizer(args: Any) -> None:
    """Raises: ConfigError, where the optimizer or the schedule cannot be made, or does not read an argument that is given.

    args: TRL's config object, which has checked the names.
    """
    import torch
    from transformers import Trainer, get_scheduler

    weight = torch.nn.Parameter(torch.zeros(1))
    errors = (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError)
    try:
        optimizer_class, arguments = Trainer.get_optimizer_cls_and_kwargs(args)
        if optimizer_class.__module__.startswith("torch.optim"):
            optimizer_class([weight], **arguments)
    except errors as error:
        if "pass a" not in str(error):  # GaLore and similar optimizers want the model, which is not loaded
            given = f" trainer.optim_args={args.optim_args}" if args.optim_args else ""
            raise ConfigError(f"trainer.optim={args.optim.value}{given}: {first_line(error)}") from error
    else:
        for item in (args.optim_args or "").replace(" ", "").split(",") if args.optim_args else []:
            # Nothing reads an argument if another value makes no difference.
            probe = copy.copy(args)
            probe.optim_args = f"{item.partition('=')[0]}=0.123"
            bare = copy.copy(args)
            bare.optim_args = None
            try:
                is_idle = Trainer.get_optimizer_cls_and_kwargs(probe) == Trainer.get_optimizer_cls_and_kwargs(bare)
            except errors:
                continue  # the argument is read: 0.123 is no value for it
            if is_idle:
                raise ConfigError(f"trainer.optim_args: {item}: trainer.optim={args.optim.value} reads no such argument; leave it out")  # fmt: skip
    kind, options = args.lr_scheduler_type, args.lr_scheduler_kwargs or {}
    if not isinstance(options, dict):
        raise ConfigError(f"trainer.lr_scheduler_kwargs must be a mapping, {{key: value}}, got {options!r:.80}")
    try:
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scheduler = get_scheduler(
            kind, optimizer, num_warmup_steps=0, num_training_steps=10, scheduler_specific_kwargs=dict(options)
        )
        if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            for _ in range(9):
                optimizer.step()
                scheduler.step()
            if not all(math.isfinite(rate) for rate in scheduler.get_last_lr()):
                raise ValueError("the learning rate is no number")
    except (*errors, ArithmeticError, AssertionError) as error:
        raise ConfigError(f"trainer.lr_scheduler_kwargs={options} with trainer.lr_scheduler_type={kind.value}: {first_line(error)}") from error  # fmt: skip


def why_no_attention(name: str | None) -> str | None:
    """The reason why an attention implementation cannot be used, to be read after its name; None where it is installed."""
    if name is None:
        return None
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "paged" not in key)]
    has_kernels = importlib.util.find_spec("kernels") is not None
    plain = name.removeprefix("paged|")
    if "/" in plain:
        return None if has_kernels else " is a kernel of the hub, which needs kernels: pip install kernels; or use sdpa"
    if plain not in known and plain not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return f": there is no {name!r}; there is {', '.join(known)}{nearest(name, known)}"
    module, install = ATTENTION.get(plain, ("torch", ""))
    if importlib.util.find_spec(module) is None and not has_kernels:
        return f" needs {module}: {install}; or pip install kernels; without it: model.attn_implementation=sdpa"
    if plain not in known[:1] and plain.startswith("flash_attention") and plain not in ATTENTION and not has_kernels:
        return " is not installed: pip install kernels; without it: model.attn_implementation=sdpa"
    return None


def _tracker_mistakes(cfg: DictConfig) -> Iterator[str]:
    for name in _trackers(cfg.trainer):
        if name not in (*TRACKERS, "none", "all", "None"):
            yield f"trainer.report_to: there is no {name!r}; there is none, all, {', '.join(TRACKERS)}{nearest(name, TRACKERS)}"
        if name in TRACKERS and importlib.util.find_spec(TRACKERS[name]) is None:
            yield f"trainer.report_to has {name}, which is not installed; pip install {PACKAGES.get(name, name)}, or set trainer.report_to=none"


def _trackers(trainer: Any) -> list[str]:
    value = trainer.report_to
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return [str(name) for name in (plain if isinstance(plain, list) else [plain])]


def _has_wandb_login() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return (
        "WANDB_API_KEY" in os.environ
        or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun", "shared")
        or (netrc.is_file() and "wandb" in netrc.read_text(encoding="utf-8", errors="replace"))
    )
