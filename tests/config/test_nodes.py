"""Several machines: what an accelerate config and the environment come to on each of them. Nothing is started here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyzero_trl.launch import NODES, launch

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "recipes" / "accelerate_configs").glob("[!c]*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_accelerates_options_put_a_config_on_several_machines(config: Path) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    options = ["--num_machines=4", "--machine_rank=2", "--num_processes=32"]
    options += ["--main_process_ip=10.0.0.1", "--main_process_port=29501", f"--config_file={config}"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*options, "grpo.py"]))
    arguments.deepspeed_fields_from_accelerate_config = ""  # what launch_command sets on its way here
    if config.stem.startswith("zero"):
        command, environment = prepare_deepspeed_cmd_env(arguments)
        assert command is None  # torchrun's own launcher, no pdsh or ssh to the other machines
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == config.stem[4]
        device = "cpu" if config.stem.endswith("offload") else "none"
        assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == device
    else:
        environment = prepare_multi_gpu_env(arguments)
        assert environment.get("ACCELERATE_USE_FSDP", "false") == str(config.stem.startswith("fsdp")).lower()
        assert environment.get("FSDP_VERSION", "2") == "2"
    assert (arguments.nnodes, arguments.node_rank, arguments.nproc_per_node) == ("4", 2, "8")
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "10.0.0.1:29501")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("missing", list(NODES)[1:])
def test_machines_that_know_half_of_each_other_are_refused(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "10.0.0.1", "PET_MASTER_PORT": "29501"}
    for name in given:
        monkeypatch.delenv(name, raising=False)
        if name != missing:
            monkeypatch.setenv(name, given[name])
    with pytest.raises(ValueError, match=f"PET_NNODES is 2, and {missing} is not set"):
        launch("grpo", [], config=CONFIGS[0])


def test_a_number_of_machines_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PET_NNODES", "two")
    with pytest.raises(ValueError, match="PET_NNODES must be a number of machines, got 'two'"):
        launch("grpo", [], config=CONFIGS[0])
