"""What a resumed run needs beyond transformers' checkpoint: collected from every class of the trainer, saved per process."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

from tinyzero_trl import storage
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.trainer.epochs import epoch_sampler

logger = logging.getLogger(__name__)
STATE = "rollout_state"
REFERENCE = "reference_model.safetensors"
TENSOR = "$tensor"


class ResumableState(GRPOTrainer):
    """The innermost of our classes: `resume_state` and `load_resume_state` are cooperative, each class adds its own.

    Rollouts in use are saved only inside a generation cycle; at the end of one the next step makes new ones.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._loss_so_far: dict[str, float] | None = None
        """What transformers sets to 0 as training begins: the loss since the last log."""
        super().__init__(*args, **kwargs)
        self.add_callback(_RestoreLoss(self))

    def resume_state(self) -> dict[str, Any]:
        """This process's state as nested dicts and lists of tensors, numbers, text and None."""
        return {
            "step": self._step,
            "rollouts": None if self._is_between_cycles() else self._buffered_inputs,
            "metrics": {mode: dict(values) for mode, values in self._metrics.items()},
            "total_train_tokens": self._total_train_tokens,
            "step_time": self._current_train_step_time,
            "loss_so_far": self._training_loss() if self.state.global_step else None,
        }

    def _training_loss(self) -> dict[str, float]:
        return {
            "loss": float(self._tr_loss),
            "total": float(self._total_loss_scalar),
            "logged_at": self._globalstep_last_logged,
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take back what `resume_state` gave."""
        self._step = state["step"]
        self._buffered_inputs = state["rollouts"]
        self._metrics = {mode: defaultdict(list, values) for mode, values in state["metrics"].items()}
        self._total_train_tokens = state["total_train_tokens"]
        self._current_train_step_time = state["step_time"]
        self._loss_so_far = state["loss_so_far"]

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if resume_from_checkpoint:
            self.args.eval_on_start = False  # the run that is continued did it
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._sampler = epoch_sampler(super()._get_train_sampler(dataset))
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> Any:
        # accelerate passes the epoch on to some ways of wrapping a sampler and not to others.
        self._sampler.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        save_state(folder, self.resume_state(), rank=self.accelerator.process_index)
        if self.args.sync_ref_model:
            reference = self.accelerator.get_state_dict(self.ref_model)
            if self.args.should_save:
                tensors = {name: tensor.detach().cpu().clone() for name, tensor in reference.items()}
                safetensors.torch.save_file(tensors, folder / REFERENCE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._refuse_without_states(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = load_state(Path(checkpoint), rank=self.accelerator.process_index, device=self.accelerator.device)
        if state is not None:
            self.load_resume_state(state)
        else:
            self._step = self.state.global_step * self.args.gradient_accumulation_steps
            if not self._is_between_cycles():
                raise ConfigError(
                    f"{checkpoint} lies inside a generation cycle and has no {STATE}: its rollouts are lost"
                )
            logger.warning("%s has no %s: metrics and counters begin anew", checkpoint, STATE)
        if self.args.sync_ref_model:
            path = Path(checkpoint) / REFERENCE
            if not path.is_file():
                raise ConfigError(f"{checkpoint} lacks {REFERENCE}, the reference model as it was synchronised")
            target = self.accelerator.unwrap_model(self.ref_model)
            target.load_state_dict(safetensors.torch.load_file(path), strict=True)

    def _refuse_without_states(self, checkpoint: Path) -> None:
        # transformers begins a new optimizer without a word. DeepSpeed and FSDP have files of their own, and do complain.
        names = [] if self.is_deepspeed_enabled or self.is_fsdp_enabled else ["optimizer.pt", "scheduler.pt"]
        of_process = f"_{self.accelerator.process_index}" if self.accelerator.num_processes > 1 else ""
        lost = [name for name in [*names, f"rng_state{of_process}.pth"] if not (checkpoint / name).is_file()]
        if lost:
            raise ConfigError(
                f"{checkpoint} lacks {', '.join(lost)}, so the run cannot go on from it as it was (trainer.save_only_model=true leaves them out)"
            )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result)
        # transformers only warns. A key may be missing where its tensor is tied to one that is there.
        tensors = self.model.state_dict(keep_vars=True)
        missing = set(load_result.missing_keys)
        loaded = {tensor.data_ptr() for name, tensor in tensors.items() if name not in missing}
        lost = sorted(name for name in missing & tensors.keys() if tensors[name].data_ptr() not in loaded)
        if lost or load_result.unexpected_keys:
            raise ConfigError(
                f"the checkpoint's weights are not this model's: missing {lost}, not known {list(load_result.unexpected_keys)}"
            )

    def _is_between_cycles(self) -> bool:
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0


class _RestoreLoss(TrainerCallback):
    def __init__(self, trainer: ResumableState):
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (saved := self.trainer._loss_so_far) is not None:
            self.trainer._tr_loss += saved["loss"]
            self.trainer._total_loss_scalar = saved["total"]
            self.trainer._globalstep_last_logged = int(saved["logged_at"])
            self.trainer._loss_so_far = None


def save_state(folder: Path, state: dict[str, Any], *, rank: int) -> None:
    """Write `rollout_state-<rank>.safetensors` and, last, the `.json` that says where in the state each tensor belongs."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    plain = _without_tensors(state, tensors)
    path = folder / f"{STATE}-{rank}.safetensors"
    with storage.replacing(path) as file:
        safetensors.torch.save_file(tensors, file.name)
    storage.write_text(path.with_suffix(".json"), json.dumps(plain))


def load_state(folder: Path, *, rank: int, device: torch.device) -> dict[str, Any] | None:
    """What `save_state` wrote, tensors on `device` or the CPU as they were; None where there is none. Nothing is unpickled."""
    path = folder / f"{STATE}-{rank}.json"
    if not path.is_file():
        return None
    tensors = safetensors.torch.load_file(path.with_suffix(".safetensors"))
    state: dict[str, Any] = _with_tensors(json.loads(path.read_text(encoding="utf-8")), tensors, device)
    return state


def _without_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {TENSOR: name, "on_cpu": value.device.type == "cpu"}
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), f"JSON has text keys only: {list(value)}"
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, tensors) for item in value]
    return value.item() if hasattr(value, "item") else value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor], device: torch.device) -> Any:
    if isinstance(value, list):
        return [_with_tensors(item, tensors, device) for item in value]
    if isinstance(value, dict) and TENSOR in value:
        tensor = tensors[value[TENSOR]]
        return tensor if value["on_cpu"] else tensor.to(device)
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors, device) for key, item in value.items()}
    return value
