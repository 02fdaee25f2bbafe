"""Combinations of keys that would break a run or its learning: one line each, that names key, value and remedy."""

from __future__ import annotations

from typing import Any

import pytest

from tinyzero_trl import config
from tinyzero_trl.config import check_method, installed, list_recipes, method, program_of
from tinyzero_trl.failures import ConfigError

TINY, LARGE = "+countdown=grpo-tiny", "+countdown=grpo-qwen-2.5-3b-base"
VLLM = ["generation.engine=colocate", "trainer.vllm_max_model_length=null"]
GRPO = ["trainer.loss_type=grpo", "trainer.scale_rewards=group"]
REFUSED: list[tuple[list[str], str]] = [
    (["trainer.max_completion_length=null"], "trainer.max_completion_length=null lets a completion grow without end"),
    ([*VLLM, "++trainer.generation_kwargs={temperature:0.5}"], "generation_kwargs.temperature is not what the loss is computed with; set trainer.temperature"),
    ([*VLLM, "++trainer.generation_kwargs={n:4}"], "generation_kwargs.n is not what the loss is computed with; remove it"),
    ([*VLLM, "++trainer.generation_kwargs={top_p:0.9}"], "generation_kwargs.top_p with vLLM makes importance ratios vanish"),
    ([*VLLM, "trainer.vllm_structured_outputs_regex=a+"], "vllm_structured_outputs_regex with vLLM makes importance ratios vanish"),
    (["generation.engine=colocate", "trainer.vllm_max_model_length=256"], "trainer.vllm_max_model_length 256 holds prompt and completion, and trainer.max_completion_length is 256"),
    (["++trainer.chat_template_kwargs={continue_final_message:true}"], "chat_template_kwargs.continue_final_message is decided by how the prompt ends"),
    (["trainer.loss_type=cispo"], "trainer.loss_type=cispo cuts the ratio itself at trainer.epsilon_high, here 0.2"),
    ([*GRPO, "trainer.loss_type=luspo"], "luspo is LUSPO only with trainer.importance_sampling_level=sequence"),
    (["trainer.importance_sampling_level=sequence"], "sequence with trainer.loss_type=dr_grpo weighs a sequence"),
    (["trainer.delta=1.1"], "trainer.delta 1.1 clips the ratio of what earned less, and has to be above 1 + epsilon_high (1.2)"),
    (["trainer.entropy_coef_min=2"], "trainer.entropy_coef_min 2 is above trainer.entropy_coef_max 1"),
    (["trainer.top_entropy_quantile=0"], "trainer.top_entropy_quantile must be more than 0 and at most 1, got 0"),
    (["trainer.vllm_gpu_memory_utilization=1.5"], "trainer.vllm_gpu_memory_utilization must be more than 0 and at most 1"),
    (["trainer.warmup_steps=40"], "trainer.warmup_steps 40 is not below trainer.max_steps 40"),
    (["trainer.bf16=true"], "trainer.bf16 on a CPU is slower than float32"),
    (["trainer.bf16=true", "trainer.fp16=true"], "trainer.fp16=true and trainer.bf16=true"),
    (["trainer.fp16=true"], "trainer.fp16 on a CPU"),
    (["trainer.fp16=true", "trainer.use_cpu=false", "model.dtype=float16"], "trainer.fp16=true scales gradients of float32 weights, and model.dtype is float16"),
    (["model.load_in_4bit=true"], "model.load_in_4bit: weights of so few bits cannot be trained; set model.use_peft=true"),
    ([*VLLM, "trainer.vllm_tensor_parallel_size=2"], "trainer.vllm_tensor_parallel_size 2 does not divide the 1 processes"),
    (["trainer.report_to=[swanlab]"], "trainer.report_to has swanlab, which is not installed; pip install swanlab"),
    (["reward_workers.rewards=[eqation]"], "reward_workers.rewards: the run has no reward 'eqation'; it has equation; did you mean equation?"),
    (["reward_workers.num_workers=0"], "reward_workers.num_workers must be more than 0, got 0"),
    (["reward_workers.memory_gib=-1"], "reward_workers.memory_gib must be more than 0, got -1"),
    (["reward_workers.rewards=[equation]", "reward_workers.seconds_per_batch=1"], "seconds_per_batch 1 ends a batch before reward_workers.seconds_per_call 5"),
    (["reward_workers.num_workers=4", "reward_workers.memory_gib=1"], "reward_workers.num_workers, reward_workers.memory_gib: nothing reads it without reward_workers.rewards"),
    (["curriculum.kind=weight"], "curriculum.kind: nothing reads it without curriculum.by"),
    (["curriculum.by=success", "trainer.shuffle_dataset=false"], "trainer.shuffle_dataset=false keeps the order of the rows, and curriculum.by chooses another"),
    (["replay.max_age=4"], "replay.max_age: nothing reads it without replay.num_groups"),
    (["batching.max_tokens_per_microbatch=4096", "trainer.entropy_coef=0.01"], "batching.max_tokens_per_microbatch=4096 with trainer.entropy_coef: micro-batches stay as TRL cuts them"),
    (["batching.share_prompts=true", "model.attn_implementation=eager"], "batching.share_prompts=true with model.attn_implementation=eager: it needs sdpa"),
    (["batching.share_prompts=true", "batching.packing=true", "model.attn_implementation=flash_attention_2"], "batching.share_prompts and batching.packing both take the padding out"),
    (["trainer.cache_implementation=static"], "trainer.cache_implementation has no effect: without vLLM our own sampler generates"),
    (["trainer.use_transformers_continuous_batching=true"], "trainer.use_transformers_continuous_batching has no effect"),
    (["reward_workers.rewards=[equation]", "reward_workers.seconds_per_batch=1800"], "seconds_per_batch 1800 is not below trainer.ddp_timeout 1800"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_right_is_refused_with_what_to_change(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_method(config.compose([TINY, *words]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([LARGE, "model.dtype=bfloat16"], "most steps of trainer.learning_rate 1e-06 are rounded to nothing"),
        ([LARGE, "trainer.bf16=false"], "computes in float32, several times slower on a GPU"),
        ([TINY, "trainer.epsilon_high=0.1"], "trainer.epsilon_high 0.1 is below trainer.epsilon 0.2"),
        ([TINY, *GRPO, "trainer.importance_sampling_level=sequence"], "clips nothing with trainer.importance_sampling_level"),
        ([TINY, "trainer.beta=0.1", "trainer.sync_ref_model=true"], "ref_model_sync_steps 512 is more than trainer.max_steps 40"),
        ([TINY, "max_generated_tokens=1000", "trainer.lr_scheduler_type=cosine"], "trainer.lr_scheduler_type=cosine goes by steps"),
        ([TINY, "algorithm=ppo", "critic.warm_start_prompts=2560"], "at least the 2560 prompts of the whole run (trainer.max_steps 40): the policy learns nothing"),
        ([TINY, "trainer.report_to=[wandb]"], "trainer.report_to has wandb, and there is no login"),
    ],
)  # fmt: skip
def test_what_may_be_meant_is_answered_with_a_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    lines = config.warnings(config.compose(words))
    assert len(lines) == 1
    assert message in lines[0]


def test_an_accelerate_config_that_accumulates_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    cfg = config.compose([TINY])
    for value in ("auto", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", value)
        check_method(cfg)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    with pytest.raises(ConfigError, match="accumulates 1 steps, trainer.gradient_accumulation_steps is 4"):
        check_method(cfg)


@pytest.mark.parametrize(
    "recipe", [item for item in list_recipes() if program_of(item.name) == "grpo"], ids=lambda item: f"{item.task}/{item.name}"
)  # fmt: skip
def test_no_recipe_is_refused_or_advised(recipe: Any) -> None:
    cfg = config.compose([f"+{recipe.task}={recipe.name}"])
    check_method(cfg, num_processes=8 if "qwen" in recipe.name else 1)
    assert method.warnings(cfg) == installed.warnings(cfg) == []
