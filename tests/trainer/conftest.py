"""Fixtures that the trainer's tests share: small models, and a trainer of any class on them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Tests are not a package (importmode=importlib): what they share is found beside them.
sys.path.insert(0, str(Path(__file__).parent))

from small_models import TOKENIZERS, make_llama, make_qwen


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    if not (TOKENIZERS / "qwen2" / "vocab.json").is_file():
        pytest.skip(f"the real Qwen tokenizer is not at {TOKENIZERS}")
    made: dict[str, Path] = {}

    def make(variant: str) -> Path:
        if variant not in made:
            made[variant] = make_qwen(tmp_path_factory.mktemp(f"tiny-qwen-{variant}"), variant=variant)
        return made[variant]

    return make


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the runs of two processes under a config of accelerate are, done in one launch for all tests: `launched("zero2") / "critic"`."""
    from two_processes import run_all

    own = tmp_path_factory.getbasetemp()
    # Workers that run side by side have folders of their own in one.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def get(config: str) -> Path:
        if config.startswith("zero"):
            pytest.importorskip("deepspeed")
        folder = shared / f"launched-{config}"
        folder.mkdir(exist_ok=True)
        run_all(config, folder)
        return folder

    return get


def shortness(completions: list[str], **columns: object) -> list[float]:
    """A reward that random weights earn: different for different completions, and soon learned."""
    return [1.0 / (1 + len(text)) for text in completions]


@pytest.fixture
def build(tiny_llama: Path, tmp_path: Path) -> Callable[..., Any]:
    """A trainer of the given class on the tiny Llama: `build(TinyZeroTrainer, reward_funcs=..., max_steps=3)`."""

    def make(
        trainer_class: type, *, reward_funcs: Any = shortness, rows: Any = None, eval_rows: Any = None, **settings: Any
    ) -> Any:
        from datasets import Dataset
        from transformers import AutoTokenizer
        from trl import GRPOConfig, RLOOConfig, RLOOTrainer

        ours = {
            *("task", "give_up_after", "seconds_before", "callbacks", "rollout_func", "batching", "critic", "replay"),
            *("algorithm", "advantage_whitening", "soft_overlong_tokens", "dynamic_sampling_rounds", "curriculum"),
            *("max_generated_tokens", "evaluation", "peft_config", "quantization_config", "offload", "stop"),
            *("vllm_generation", "kl_tokens"),
        }
        extras = {key: settings.pop(key) for key in ours & settings.keys()}
        model = settings.pop("model", tiny_llama)
        rows = rows or [
            {"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(16)
        ]
        values: dict[str, Any] = {
            "output_dir": str(tmp_path / trainer_class.__name__),
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 8,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
            "seed": 7,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            **settings,
        }
        return trainer_class(
            model=str(model),
            reward_funcs=reward_funcs,
            args=(RLOOConfig if issubclass(trainer_class, RLOOTrainer) else GRPOConfig)(**values),
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
            processing_class=AutoTokenizer.from_pretrained(tiny_llama, padding_side="left"),
            **extras,
        )

    return make


def weights_of(trainer: Any) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
