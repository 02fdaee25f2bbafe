"""A run with an adapter: the gradients are TRL's, only the adapter moves and is saved, and the folder is evaluated and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from forced_runs import SAMPLED, forced, now_and_then
from trl import GRPOTrainer

from small_models import make_llama
from tinyzero_trl import cli, grpo
from tinyzero_trl.config import BatchingSettings
from tinyzero_trl.evaluation import command_line
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models.location import locate
from tinyzero_trl.storage import manifest
from tinyzero_trl.trainer import TinyZeroTrainer

ADAPTER = (
    *("model.use_peft=true", "model.lora_r=4", "model.lora_alpha=8", "model.lora_dropout=0.0"),
    "model.lora_target_modules=[all-linear]",
)
SMALL = (
    *("trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=2", "trainer.num_generations=4"),
    *("trainer.max_completion_length=16", "trainer.save_steps=2", "data.num_train_rows=200", "data.num_eval_rows=8"),
    *("trainer.eval_steps=2", "trainer.per_device_eval_batch_size=8", "trainer.learning_rate=1e-2"),
    "trainer.lr_scheduler_type=constant",
)
REWARD = "def short(response: str) -> float:\n    return 1 / (1 + len(response))\n"


def adapter() -> Any:
    from peft import LoraConfig

    torch.manual_seed(5)  # what lora_A is drawn by
    return LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )


@pytest.mark.slow
@pytest.mark.alone
def test_under_zero3_an_adapter_is_merged_with_one_layer_gathered_at_a_time(launched: Callable[[str], Path]) -> None:
    """Two processes, each of which may have no room for a whole model."""
    for rank in (0, 1):
        found = json.loads((launched("zero3") / f"merged.{rank}.json").read_text())
        assert found["names"]
        assert found["difference"] <= 1e-6 < 1e-4 < found["moved"]
        assert 0 < found["gathered"] <= found["largest"] < found["all"] / 3


def moved(trainer: Any) -> dict[str, torch.Tensor]:
    """The change of each weight in training."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    return {name: value.detach() - before[name] for name, value in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [{}, {"beta": 0.1}, {"num_iterations": 2, "steps_per_generation": 4}, {"gradient_checkpointing": True}],
    ids=["plain", "reference", "mu = 2", "checkpointing"],
)
def test_the_adapter_moves_as_under_stock_trl_whatever_is_left_out(build: Any, changes: dict[str, Any]) -> None:
    settings = {**SAMPLED, "learning_rate": 0.01, **changes}
    stock = moved(forced(build(GRPOTrainer, reward_funcs=now_and_then, peft_config=adapter(), **settings)))
    batching = BatchingSettings(max_tokens_per_microbatch=90)
    ours = moved(
        forced(build(TinyZeroTrainer, reward_funcs=now_and_then, peft_config=adapter(), batching=batching, **settings))
    )
    assert max(change.abs().max() for name, change in stock.items() if "lora_" in name) > 1e-4
    for name, change in stock.items():
        assert (ours[name] - change).abs().max() <= 1e-6, name
        assert "lora_" in name or not change.any(), name


def test_the_reference_of_an_adapter_is_the_model_without_it(build: Any) -> None:
    trainer = forced(build(TinyZeroTrainer, beta=0.1, peft_config=adapter(), batching=BatchingSettings()))
    trainer.model.train()
    batch = trainer._generate_and_score_completions(list(trainer.train_dataset)[:8])
    assert trainer.ref_model is None
    policy, reference = trainer.policy_logps(batch), trainer.reference_logps(batch)
    with trainer.model.disable_adapter():
        without = trainer.policy_logps(batch)
    torch.testing.assert_close(reference, without, atol=1e-6, rtol=0)
    assert (policy - reference).abs().max() > 1e-3


@pytest.mark.slow
def test_a_run_with_an_adapter_trains_saves_resumes_is_evaluated_and_merged(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    words = ["+countdown=grpo-tiny", f"model.model_name_or_path={tiny_llama}", *SMALL, *ADAPTER]
    words += ["rewards.equation=0", f"rewards.{tmp_path}/reward.py:short=1"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert grpo.train([*words, "trainer.max_steps=4", f"output_dir={straight}"]) == 0
    assert grpo.train([*words, "trainer.max_steps=2", f"output_dir={broken}"]) == 0
    assert grpo.train([*words, "trainer.max_steps=4", f"trainer.resume_from_checkpoint={broken}"]) == 0

    saved, resumed = (
        safetensors.torch.load_file(run / "model" / "adapter_model.safetensors") for run in (straight, broken)
    )
    assert saved.keys() == resumed.keys()
    assert all(torch.equal(saved[name], resumed[name]) for name in saved)
    assert any(value.any() for name, value in saved.items() if "lora_B" in name)
    assert all("lora_" in name for name in saved)
    assert not (straight / "model" / "model.safetensors").exists()
    assert manifest.why_not_usable(straight / "model") is None

    location = locate(str(straight))
    assert (location.path, location.adapter) == (str(tiny_llama), str(straight / "model"))
    few = ["--n", "4", "--max_new_tokens", "8", "--source", "generated"]
    assert command_line.main(["--model_path", str(straight), *few]) == 0
    assert json.loads((straight / "evaluation" / "final" / "summary.json").read_text())["num_problems"] == 4

    # A run that starts from this one goes on from what it learned, with an adapter of its own.
    onward, others = tmp_path / "onward", [word for word in words if not word.startswith("model.model_name_or_path=")]
    begun = [*others, f"model.model_name_or_path={straight}", "trainer.beta=0.1", "trainer.max_steps=1"]
    assert grpo.train([*begun, f"output_dir={onward}"]) == 0
    location = locate(str(onward))
    assert (location.path, location.adapter) == (str(onward / "start"), str(onward / "model"))
    assert logits(onward / "start") == pytest.approx(logits(tiny_llama, straight / "model"), abs=1e-5)
    assert logits(onward / "start", onward / "model") != pytest.approx(logits(onward / "start"), abs=1e-9)
    assert grpo.train([*begun, "trainer.max_steps=2", f"trainer.resume_from_checkpoint={onward}"]) == 0

    assert cli.main(["merge", str(straight), str(tmp_path / "merged")]) == 0
    assert locate(str(tmp_path / "merged")).adapter is None
    assert logits(tmp_path / "merged") == pytest.approx(logits(tiny_llama, straight / "model"), abs=1e-5)
    assert logits(tmp_path / "merged") != pytest.approx(logits(tiny_llama), abs=1e-3)
    with pytest.raises(ValueError, match="is there already"):
        cli.VERBS["merge"]([str(straight), str(tmp_path / "merged")])


def logits(folder: Path, adapter: Path | None = None) -> list[float]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        values: list[float] = model(torch.tensor([[70, 71, 72]])).logits[0, -1].tolist()
    return values


@pytest.mark.slow
def test_quantized_weights_stay_as_they_are_and_the_adapter_learns(tmp_path: Path) -> None:
    """QLoRA's whole path on the CPU, 4-bit weights and 8-bit optimizer, where bitsandbytes is installed."""
    pytest.importorskip("bitsandbytes")
    (tmp_path / "reward.py").write_text(REWARD)
    model = make_llama(tmp_path / "model", hidden=128)  # bitsandbytes packs whole blocks of 64 weights
    words = ["+countdown=grpo-tiny", f"model.model_name_or_path={model}", *SMALL, *ADAPTER]
    words += ["rewards.equation=0", f"rewards.{tmp_path}/reward.py:short=1", f"output_dir={tmp_path / 'run'}"]
    words += ["model.load_in_4bit=true", "model.use_bnb_nested_quant=true", "trainer.optim=adamw_8bit"]
    assert grpo.train([*words, "trainer.max_steps=2", "trainer.beta=0.01"]) == 0
    saved = safetensors.torch.load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    assert any(value.any() for name, value in saved.items() if "lora_B" in name)
    assert command_line.main(["--model_path", str(tmp_path / "run"), "--n", "4", "--max_new_tokens", "8"]) == 0


@pytest.mark.slow
def test_on_quantized_weights_the_gradient_is_the_same_after_generation_and_the_adapter_is_float32(
    build: Any, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model = make_llama(tmp_path / "model", hidden=128)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    trainer = build(TinyZeroTrainer, model=model, quantization_config=settings, peft_config=adapter())
    trained_weights = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained_weights.items())
    ids = torch.arange(60, 100)[None]

    def gradients() -> dict[str, torch.Tensor]:
        trainer.model.zero_grad()
        trainer.model.train()
        trainer.model(ids).logits.logsumexp(-1).sum().backward()
        return {name: p.grad.clone() for name, p in trained_weights.items()}

    before = gradients()
    trainer.model.eval()
    with torch.no_grad():
        trainer.model(ids)
    after = gradients()
    assert all(gradient.any() for gradient in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "words",
    [["model.load_in_4bit=true", *ADAPTER], ["model.load_in_8bit=true", *ADAPTER], ["trainer.optim=adamw_8bit"]],
)
def test_without_bitsandbytes_what_needs_it_is_refused_with_the_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    with pytest.raises(ConfigError, match=r"needs bitsandbytes.*pip install -e '.\[quantization\]'"):
        grpo.train(["+countdown=grpo-tiny", *words])
