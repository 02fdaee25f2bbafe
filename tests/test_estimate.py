"""`tinyzero estimate`: shapes against real models, formulas against the papers and against tensors that were really kept."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl import cli
from tinyzero_trl.config import RECIPES, Sharding, compose, list_recipes, program_of, sharding_here
from tinyzero_trl.estimate import memory_of, shape_of, sharding_of, workload_of
from tinyzero_trl.estimate.memory import GIB, _model_states, layer_bytes
from tinyzero_trl.estimate.speed import CARDS, USABLE, card_of, smallest_size, speed_of
from tinyzero_trl.estimate.workload import KNOWN, Shape, Workload, shape_from
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import load_path

REAL = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
}
"""Parameters as the hub counts them in the checkpoints."""


def workload(
    *words: str, recipe: str = "+countdown=grpo-qwen-2.5-1.5b-base", sharding: Sharding | None = None
) -> Workload:
    cfg = compose([recipe, *words])
    shape = shape_of(str(cfg.model.model_name_or_path))
    return workload_of(cfg, shape, sharding or Sharding())


@pytest.mark.parametrize("name", REAL)
def test_a_known_shape_has_the_parameters_of_its_checkpoint(name: str) -> None:
    assert shape_of(name).num_parameters == REAL[name]


def test_the_shape_of_a_folder_has_the_parameters_of_its_file() -> None:
    folder = Path(load_path("tiny"))
    content = (folder / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    sizes = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    width = 4 if next(iter(e for n, e in header.items() if n != "__metadata__"))["dtype"] == "F32" else 2
    assert shape_of("tiny").num_parameters == sum(end - start for start, end in sizes) / width


def test_what_is_no_dense_decoder_or_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 10,
    }
    assert shape_from(plain, name="x").kv_width == 8
    with pytest.raises(ConfigError, match="only dense decoders can be estimated; it has num_experts"):
        shape_from({**plain, "num_experts": 8}, name="x")
    with pytest.raises(ConfigError, match="its config.json has no vocab_size"):
        shape_from({key: value for key, value in plain.items() if key != "vocab_size"}, name="x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"the shape of Qwen/Qwen2.5-4B is not known here"):
        shape_of("Qwen/Qwen2.5-4B")


@pytest.mark.parametrize(
    ("stage", "published", "of_sums"), [(0, 120.0, 0.0), (1, 31.4, 4.0), (2, 16.6, 2 / 64), (3, 1.88, 2 / 64)]
)
def test_model_states_are_those_of_the_zero_paper_and_what_float32_sums_take(
    stage: int, published: float, of_sums: float
) -> None:
    """Figure 1: 7.5 B weights on 64 devices, Adam in mixed precision, gigabytes of 10^9 bytes.

    of_sums: bytes a weight, as the paper's gradients have two and the sum of several micro-batches four; ZeRO-1 holds both.
    """
    sharding = Sharding(64, "deepspeed", stage)
    paper = replace(workload("trainer.optim=adamw_torch", sharding=sharding), shape=_of_size(7_500_000_000))
    weights, gradients, states, _ = _model_states(paper)
    if stage == 3:
        weights -= 2.0 * 1_000_000_000  # what DeepSpeed keeps gathered while it works, which the figure leaves out
    assert (weights + gradients + states) / 1e9 == pytest.approx(published + 7.5 * of_sums, rel=0.01)


@pytest.mark.parametrize(
    ("num_processes", "is_cpu", "has_buckets"), [(1, True, False), (1, False, True), (2, True, True)]
)
def test_a_process_that_accelerate_wraps_in_ddp_holds_its_gradients_twice(
    num_processes: int, is_cpu: bool, has_buckets: bool
) -> None:
    sharding = replace(Sharding(), num_processes=num_processes, is_cpu=is_cpu)
    phases = memory_of(workload("model.dtype=float32", sharding=sharding)).phases
    buckets = [held.get("buckets", 0.0) for held in phases.values()]
    assert set(buckets) == {4.0 * REAL["Qwen/Qwen2.5-1.5B-Instruct"] if has_buckets else 0.0}


def _of_size(num: int) -> Shape:
    return Shape(layers=0, hidden=1, heads=1, kv_heads=1, head_dim=1, intermediate=0, vocab=num - 1, is_tied=True)


def test_an_adapter_has_gradients_and_states_for_itself_alone_and_no_reference_model() -> None:
    whole, lora = (
        workload("trainer.beta=0.01"),
        workload("trainer.beta=0.01", "model.use_peft=true", "model.dtype=bfloat16"),
    )
    full, small = memory_of(whole), memory_of(lora)
    assert full.phases["optimizer step"]["optimizer"] == pytest.approx(8 * whole.shape.num_parameters)
    assert small.phases["optimizer step"]["optimizer"] == pytest.approx(8 * lora.trained)
    assert "reference" in full.phases["generation"]
    assert "reference" not in small.phases["generation"]
    assert small.peak < full.peak / 2


def test_four_bits_shrink_the_linear_maps_and_nothing_else() -> None:
    words = ("model.use_peft=true", "model.dtype=bfloat16")
    half, quarter = workload(*words), workload(*words, "model.load_in_4bit=true", "model.use_bnb_nested_quant=true")
    saved = memory_of(half).phases["generation"]["weights"] - memory_of(quarter).phases["generation"]["weights"]
    assert saved == pytest.approx((2 - 0.5 - 0.127 / 8) * half.shape.linear_weights)


@pytest.mark.parametrize(
    ("words", "phase", "is_less"),
    [
        (["trainer.gradient_checkpointing=false"], "forward and backward", False),
        (["trainer.per_device_train_batch_size=8"], "forward and backward", True),
        (["trainer.optim=adamw_8bit"], "optimizer step", True),
        (["generation.engine=transformers"], "forward and backward", True),  # a vLLM that sleeps keeps its graphs
        (["trainer.vllm_enable_sleep_mode=false"], "forward and backward", False),
        (["trainer.beta=0.01"], "generation", False),
        (["generation.offload=true"], "forward and backward", True),
        (["generation.offload=true"], "optimizer step", None),
        (["model.dtype=bfloat16"], "optimizer step", True),
        (["algorithm=ppo"], "generation", False),
    ],
)
def test_what_a_key_changes(words: list[str], phase: str, is_less: bool | None) -> None:
    before, after = (memory_of(workload(*more), device_bytes=80 * GIB).total(phase) for more in ([], words))
    assert (after < before) is is_less if is_less is not None else after == before


def test_offload_moves_states_to_the_host() -> None:
    here, there = (
        memory_of(workload(sharding=Sharding(8, "deepspeed", 2, offloads_optimizer=o))) for o in (False, True)
    )
    assert there.on_host == here.phases["generation"]["optimizer"] > 0
    assert there.phases["generation"]["optimizer"] == 0
    sums = memory_of(workload(sharding=Sharding(8, "deepspeed", 3, offloads_optimizer=True)))
    assert sums.on_host == here.phases["generation"]["optimizer"] + 4.0 * workload().shape.num_parameters / 8
    assert sums.phases["optimizer step"]["gradients"] == 0


def test_a_bucket_of_weights_on_its_way_to_a_server_is_counted_where_it_goes_by_nccl() -> None:
    words = ("generation.engine=server", "generation.devices='7'")
    sent = [
        memory_of(workload(*words, *more)).phases["generation"].get("weights sent")
        for more in ([], ["generation.weight_transfer=file"])
    ]
    shape = workload(*words).shape
    assert sent == [2**30 + 4.0 * shape.vocab * shape.hidden, None]
    assert "weights sent" not in memory_of(workload(*words, sharding=Sharding(8, "deepspeed", 3))).phases["generation"]


def test_what_waits_on_the_host_between_phases_is_counted_there() -> None:
    here, there = (memory_of(workload("trainer.beta=0.01", f"generation.offload={o}")) for o in ("false", "true"))
    held = here.phases["generation"]
    assert there.on_host == held["optimizer"] + held["reference"]
    assert here.total("generation") - there.total("generation") == pytest.approx(there.on_host)
    assert there.phases["forward and backward"]["reference"] == held["reference"]


def test_a_config_file_and_the_environment_it_makes_say_the_same() -> None:
    assert sharding_of(RECIPES / "accelerate_configs" / "zero3.yaml", num_processes=4) == Sharding(4, "deepspeed", 3)
    env = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert sharding_here(4, is_cpu=False, environment=env) == Sharding(4, "deepspeed", 3)
    assert sharding_of(RECIPES / "accelerate_configs" / "fsdp2.yaml", num_processes=2) == Sharding(2, "fsdp", 3)
    assert sharding_here(2, is_cpu=False, environment={"ACCELERATE_USE_FSDP": "true"}) == Sharding(2, "fsdp", 3)
    assert sharding_of(RECIPES / "accelerate_configs" / "cpu.yaml") == Sharding(is_cpu=True)
    assert sharding_here(1, is_cpu=True, environment={}) == Sharding(is_cpu=True)


def test_cards_are_found_by_the_names_people_and_drivers_use() -> None:
    for said, meant in (
        ("h200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-40GB", "A100-40"), ("A100", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"), ("Tesla T4", "T4"), ("NVIDIA L40S", "L40S"), ("NVIDIA RTX A6000", "A6000"),
    ):  # fmt: skip
        assert card_of(said).name == meant, said
    with pytest.raises(ConfigError, match=r"--gpu 'H300' is not known; known are .*H200"):
        card_of("H300")
    assert [smallest_size(gib * GIB) for gib in (1, 7.9, 23, 100, 200)] == [8, 16, 24, 140, None]


def test_a_faster_card_a_shorter_completion_and_vllm_take_less_time() -> None:
    usual = speed_of(workload(), CARDS["A100"])
    assert speed_of(workload(), CARDS["H200"]).seconds < usual.seconds
    assert speed_of(workload(), CARDS["A100"], mean_completion=100).seconds < usual.seconds
    assert speed_of(workload("generation.engine=transformers"), CARDS["A100"]).generation > 2 * usual.generation
    assert usual.generated_tokens == 256 * 512
    assert usual.trained_tokens == 256 * (200 + 512)


def test_a_step_trains_on_its_batch_whatever_the_token_budget_and_pays_its_share_of_the_rollout() -> None:
    card = CARDS["A100"]
    usual, roomy = speed_of(workload(), card), speed_of(workload("batching.max_tokens_per_microbatch=100000"), card)
    assert roomy.trained_tokens == usual.trained_tokens
    # Four times the 16 micro-batches of a step at once, for four steps: each step's share is what it was, or less.
    fourfold = speed_of(workload("trainer.steps_per_generation=64"), card)
    assert fourfold.generated_tokens == usual.generated_tokens
    assert fourfold.generation <= usual.generation
    again = speed_of(workload("trainer.num_iterations=2"), card)
    assert again.generated_tokens == usual.generated_tokens / 2


@pytest.mark.parametrize(
    "recipe",
    [r for r in list_recipes() if program_of(r.name) == "grpo" and "GB" in r.hardware],
    ids=lambda r: f"{r.task}/{r.name}",
)
def test_a_recipe_fits_the_card_its_head_names(recipe: Any) -> None:
    number, size = _hardware(recipe.hardware)
    config, processes = recipe.accelerate_config, recipe.num_processes
    assert processes == number
    sharding = sharding_of(RECIPES / "accelerate_configs" / f"{config}.yaml", num_processes=processes)
    memory = memory_of(workload(recipe=f"+{recipe.task}={recipe.name}", sharding=sharding), device_bytes=size * GIB)
    assert memory.peak <= USABLE * size * GIB, f"{memory.peak / GIB:.1f} GiB in {memory.peak_phase}"


def _hardware(text: str) -> tuple[int, int]:
    words = text.split()
    return int(words[0]), int(words[words.index("of") + 1])


def test_the_command_prints_phases_peak_time_and_price_and_says_what_does_not_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["estimate", "+countdown=grpo-qwen-2.5-3b-base", "--rate", "3.5"]
    assert cli.main([*words, "--gpu", "H100"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "4 processes, ZeRO-2",
        "forward and backward",
        "fits H100",
        "minutes",
        "hours",
        "at 3.5 a GPU and hour",
    ):
        assert part in shown, shown
    assert cli.main([*words, "--gpu", "RTX4090"]) == 1
    assert "does not fit RTX4090" in capsys.readouterr().out
    assert cli.main([*words, "--gpu", "H100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["peak_bytes"] == pytest.approx(max(sum(held.values()) for held in found["phases"].values()))
    assert found["price"] == pytest.approx(found["hours"] * 4 * 3.5)


def test_mistakes_are_answered_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        ([], "no recipe given"),
        (
            ["+countdown=grpo-tiny", "trainer.per_device_train_batch_size=0"],
            "per_device_train_batch_size must be at least 1",
        ),
        (["+countdown=grpo-tiny", "trainer.num_generations=0"], "trainer.num_generations must be at least 2, got 0"),
        (
            ["+countdown=grpo-tiny", "trainer.max_completion_length=-4"],
            "max_completion_length must be at least 1, got -4",
        ),
        (["+countdown=grpo-tiny", "--processes", "0"], "--processes must be more than 0 and below 10,000,000, got 0"),
        (["+countdown=grpo-tiny", "--rate", "nan"], "--rate must be more than 0 and below 10,000,000, got nan"),
        (
            ["+countdown=grpo-tiny", "--mean_tokens", "-5"],
            "--mean_tokens must be more than 0 and below 10,000,000, got -5",
        ),
        (["+countdown=grpo-tiny", "--prompt_tokens", "0"], "--prompt_tokens must be more than 0"),
        (["+countdown=grpo-tiny", "--accelerate_config", "zero9"], "there is no accelerate config 'zero9'"),
        (["+countdown=grpo-qwen-2.5-3b-base", "--gpu", "abacus"], "--gpu 'abacus' is not known"),
    ):
        assert cli.main(["estimate", *words]) == 2
        assert said in capsys.readouterr().err


def test_a_run_that_does_not_fit_its_gpu_is_warned_of_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tinyzero_trl.estimate import warnings

    class Small:
        total_memory = 24 * GIB

    cfg = compose(["+countdown=grpo-qwen-2.5-3b-base"])
    assert warnings(cfg, num_processes=1) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Small)
    (line,) = warnings(cfg, num_processes=1)
    assert "and this GPU has 24" in line
    Small.total_memory = 10_000 * GIB
    assert warnings(cfg, num_processes=1) == []


@pytest.mark.slow
@pytest.mark.parametrize("is_lora", [False, True])
def test_a_layer_keeps_as_many_bytes_as_counted(is_lora: bool) -> None:
    """Counted on a real layer: every tensor autograd saves, each storage once, weights left out."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=50, num_hidden_layers=1, **sizes)
    shape = shape_from(config.to_dict(), name="layer")
    kept = []
    for layers in (1, 3):
        model: Any = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=layers, **sizes)).train()
        if is_lora:
            from peft import LoraConfig, get_peft_model

            settings = LoraConfig(r=2, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, settings)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        held: dict[int, int] = {}
        alive: list[torch.Tensor] = []

        def pack(tensor: torch.Tensor, held: dict[int, int] = held, alive: list[torch.Tensor] = alive) -> torch.Tensor:
            alive.append(tensor)
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        mask = torch.ones(8, 128, dtype=torch.long)
        mask[0, :5] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone = model.get_base_model().model if is_lora else model.model
            backbone(input_ids=torch.zeros(8, 128, dtype=torch.long), attention_mask=mask).last_hidden_state.sum()
        kept.append(sum(size for place, size in held.items() if place not in weights))
    base = workload(recipe="+countdown=grpo-tiny")
    counted = replace(base, shape=shape, lora_weights=1 if is_lora else None, prompt=100, completion=28)
    assert layer_bytes(counted) == pytest.approx((kept[1] - kept[0]) / 2 / (8 * 128), rel=0.02)


def test_every_known_shape_divides_its_width_into_heads() -> None:
    for name, shape in KNOWN.items():
        assert shape.heads % shape.kv_heads == 0, name
        assert shape.head_dim in (64, 128), name
