"""Processes as launchers describe them: nonsense in the environment and in accelerate's config files is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyzero_trl import cli, config
from tinyzero_trl.config import sharding_of
from tinyzero_trl.config.sharding import KEYS
from tinyzero_trl.failures import ConfigError

ROOT = Path(__file__).resolve().parents[2]
GROUP = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
"""Variables that torchrun sets for the second of two processes."""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        GROUP,
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "", "WORLD_SIZE": ""},
        {"LOCAL_RANK": "-1"},
        {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"},
        {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"},
        {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
    ],
)
def test_an_environment_as_launchers_make_it_is_taken(environment: dict[str, str]) -> None:
    config.check_environment(environment)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "one"}, "RANK=one in the environment must be a whole number"),
        ({"RANK": "-1"}, "RANK=-1 in the environment must be a whole number"),
        ({"RANK": "3"}, "RANK=3 in the environment must be below WORLD_SIZE, which is 1 (WORLD_SIZE is not set)"),
        ({**GROUP, "RANK": "2"}, "RANK=2 in the environment must be below WORLD_SIZE, which is 2"),
        ({**GROUP, "LOCAL_RANK": "9"}, "LOCAL_RANK=9 in the environment must be below LOCAL_WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment must be a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment must be at least 1"),
        ({"WORLD_SIZE": "1.5"}, "WORLD_SIZE=1.5 in the environment must be a whole number"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 in the environment, and RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment, and RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x in the environment must be a whole number"),
        ({**GROUP, "LOCAL_WORLD_SIZE": "many"}, "LOCAL_WORLD_SIZE=many in the environment must be a whole number"),
        ({**GROUP, "MASTER_PORT": "http"}, "MASTER_PORT=http in the environment must be a port, from 1 to 65535"),
        ({**GROUP, "MASTER_PORT": "70000"}, "MASTER_PORT=70000 in the environment must be a port"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "maybe"},
            "ACCELERATE_USE_DEEPSPEED=maybe in the environment must be true or false",
        ),
        ({"ACCELERATE_USE_FSDP": "1"}, "ACCELERATE_USE_FSDP=1 in the environment must be true or false"),
        ({"ACCELERATE_USE_CPU": "perhaps"}, "ACCELERATE_USE_CPU=perhaps in the environment must be true, false"),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp4"},
            "ACCELERATE_MIXED_PRECISION=fp4 in the environment must be no, fp16 or bf16",
        ),
        (
            {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "7"},
            "ACCELERATE_DEEPSPEED_ZERO_STAGE=7 in the environment must be 0, 1, 2 or 3",
        ),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0"},
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=0 in the environment",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM cannot train these runs"),
    ],
)
def test_nonsense_in_the_environment_is_one_line_with_the_variable(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.check_environment(environment)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_launcher_does_not_start_below_another_one() -> None:
    config.check_to_launch({"WORLD_SIZE": "1", "RANK": "0"})
    config.check_to_launch({"WORLD_SIZE": "4", "PET_NNODES": "4"})
    for environment, message in (
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 in the environment says that this is one of 4 processes"),
        ({"PET_MASTER_PORT": "ssh"}, "PET_MASTER_PORT=ssh in the environment must be a port"),
    ):
        with pytest.raises(ConfigError) as error:
            config.check_to_launch(environment)
        assert message in str(error.value)


def test_nonsense_in_the_environment_is_told_before_anything_heavy_loads() -> None:
    code = (
        "import sys; from tinyzero_trl import failures, grpo, sft; "
        "codes = {failures.exit_code_of(program.train, []) for program in (grpo, sft)}; "
        "assert not {'torch', 'trl', 'transformers', 'accelerate'} & sys.modules.keys(), sys.modules.keys(); "
        "sys.exit(codes.pop())"
    )
    environment = {**os.environ, "WORLD_SIZE": "two", "RANK": "three"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith("error (process three): RANK=three in the environment must be a whole number")
    assert ended.stderr.count("\n") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds nothing, and must hold keys such as distributed_type"),
        ("- a\n- b\n", "holds a list, and must hold keys"),
        ("hello", "holds a str, and must hold keys"),
        ("a: [", "cannot be read: while parsing"),
        (b"\xff\xfe\x00", "cannot be read: 'utf-8' codec"),
        ("num_processes: 1\n", "has no distributed_type; there is NO, MULTI_CPU, MULTI_GPU, DEEPSPEED, FSDP"),
        ("distributed_type: NO\n", 'has distributed_type false: write it in quotes, "NO"'),
        ("distributed_type: MEGATRON_LM\n", "has distributed_type 'MEGATRON_LM', which runs here cannot have"),
        ("distributed_type: MULTI_GPUS\n", "did you mean MULTI_GPU?"),
        (
            "distributed_type: DEEPSPEED\nnum_processes: 0\n",
            "has num_processes 0, and it must be a whole number of at least 1",
        ),
        ("distributed_type: MULTI_GPU\nnum_processes: two\n", "has num_processes 'two'"),
        ("distributed_type: MULTI_GPU\nnum_machines: null\nnum_processes: 2\n", "has num_machines None"),
        ("distributed_type: FSDP\nfsdp_config: null\nnum_processes: 2\n", "has fsdp_config None"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: zero2\nnum_processes: 2\n", "has deepspeed_config 'zero2'"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 9}\nnum_processes: 2\n",
            "zero_stage 9; there is",
        ),
        ("distributed_type: MULTI_GPU\nmixed_precision: fp4\nnum_processes: 2\n", "has mixed_precision 'fp4'"),
        ("distributed_type: MULTI_GPU\ngpu_ids: 0\nnum_processes: 2\n", "has gpu_ids 0, and it must be text"),
        ("distributed_type: MULTI_GPU\nmain_process_port: http\nnum_processes: 2\n", "has main_process_port 'http'"),
        ("distributed_type: MULTI_GPU\ncompute_environment: AMAZON_SAGEMAKER\nnum_processes: 2\n", "AMAZON_SAGEMAKER"),
        (
            "distributed_type: MULTI_GPU\nnum_process: 2\nnum_processes: 2\n",
            "a key num_process that accelerate does not know; did you mean num_processes?",
        ),
    ],
)
def test_a_broken_accelerate_config_is_one_line_that_names_it(
    content: str | bytes,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "visible_gpus", list)
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert cli.main(["train", "+countdown=grpo-tiny", "--accelerate_config", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith(f"tinyzero train: accelerate config {file} ")
    assert said.count("\n") == 1
    with pytest.raises(ConfigError):
        sharding_of(file)


def test_a_number_of_processes_may_come_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for line in ("", "num_processes: -1\n"):
        file.write_text(f"distributed_type: MULTI_GPU\n{line}")
        assert config.read_accelerate_config(file, num_processes=4) == {"distributed_type": "MULTI_GPU"}
        with pytest.raises(ConfigError, match="has (no num_processes|num_processes -1)"):
            config.read_accelerate_config(file)


def test_the_keys_of_a_config_file_are_those_of_accelerate() -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    assert ClusterConfig.__dataclass_fields__.keys() | {"fp16", "dynamo_backend"} == KEYS


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml")), ids=lambda file: file.stem
)
def test_our_own_accelerate_configs_are_taken(file: Path) -> None:
    assert config.read_accelerate_config(file)["num_machines"] == 1
