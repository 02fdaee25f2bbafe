"""A prompt that is computed once for its completions changes nothing but rounding, whatever the model, the rows and the method."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from forced_runs import SAMPLED, forced, now_and_then, trained
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM
from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tinyzero_trl.config import BatchingSettings, check_shared_prompts
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.trainer import TinyZeroTrainer
from tinyzero_trl.trainer.microbatches import chunk_sizes, cut
from tinyzero_trl.trainer.shared_prompts import SharedPrompts, layout_of, prompt_numbers

SHARED = BatchingSettings(share_prompts=True)


def model_of(kind: str, *, temperature: float = 1.0) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        *(kind,), vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=None, attn_implementation="sdpa", pad_token_id=0,
    )  # fmt: skip
    check_shared_prompts(config)
    model = AutoModelForCausalLM.from_config(config)
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    return model


def padded(groups: list[tuple[int, list[int]]], *, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Ids and mask of the rows, [B, L], and the columns of prompts."""
    draw = torch.Generator().manual_seed(seed)
    width, height = max(prompt for prompt, _ in groups), max(1, *(max(lengths) for _, lengths in groups))
    ids, mask = [], []
    for num_prompt, lengths in groups:
        prompt = torch.randint(1, 60, (num_prompt,), generator=draw).tolist()
        for length in lengths:
            completion = torch.randint(1, 60, (length,), generator=draw).tolist()
            before, behind = width - num_prompt, height - length
            ids.append([0] * before + prompt + completion + [0] * behind)
            mask.append([0] * before + [1] * (num_prompt + length) + [0] * behind)
    return torch.tensor(ids), torch.tensor(mask), width


def drawn(seed: int) -> list[tuple[int, list[int]]]:
    """Tokens of one to four prompts, and of each one's completions."""
    draw = random.Random(seed)
    return [
        (draw.randint(1, 5), [draw.randint(0, 7) for _ in range(draw.randint(1, 4))]) for _ in range(draw.randint(1, 4))
    ]


def results(model: Any, ids: torch.Tensor, mask: torch.Tensor, num_prompt: int, *, shares: bool) -> list[torch.Tensor]:
    """Log-probabilities and entropy of completions, [B, T], and the gradient of a weighted sum of the former."""
    model.zero_grad()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :num_prompt] = -100
    callee = SharedPrompts(model, num_prompt=num_prompt) if shares else model
    found = callee(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    width, is_real = ids.shape[1] - num_prompt, labels[:, num_prompt:] != -100
    logps, entropy = found.log_probs[:, -width:], found.entropy[:, -width:] * is_real
    (logps * torch.linspace(0.5, 1.5, logps.numel()).view_as(logps)).sum().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return [logps.detach(), entropy.detach(), gradient]


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_it_gives_the_log_probabilities_and_gradients_of_a_padded_pass(kind: str, checkpoints: bool) -> None:
    model = model_of(kind, temperature=0.8).train()
    if checkpoints:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    rows = padded([(3, [7, 1, 4]), (5, [6]), (1, [2, 9, 9, 3]), (4, [0, 5])])
    ours, theirs = (results(model, *rows, shares=shares) for shares in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(40))
def test_every_token_before_a_prediction_is_computed_once_and_sees_its_own_row(seed: int) -> None:
    groups = drawn(seed)
    ids, mask, num_prompt = padded(groups)
    labels = ids.masked_fill(mask == 0, -100)
    layout = layout_of(ids, mask, labels, num_prompt=num_prompt)
    # Equal neighbours, which chance makes of short prompts too, are one prompt.
    prefixes = [row[:num_prompt][seen[:num_prompt] == 1][:-1].tolist() for row, seen in zip(ids, mask, strict=True)]
    different = [one for index, one in enumerate(prefixes) if index == 0 or one != prefixes[index - 1]]
    segments = [max(1, length) for _, lengths in groups for length in lengths]
    assert len(layout.input_ids_N) == sum(map(len, different)) + sum(segments)

    places = layout.token_M.split([size * width for size, width in layout.rows])
    in_rows = [row for part, shape in zip(places, layout.rows, strict=True) for row in part.view(shape)]
    found = sorted(
        [
            layout.input_ids_N[row[: len(prefix) + segment]].tolist()
            for row, prefix, segment in _longest(in_rows, prefixes, segments)
        ]
    )
    before = [row[seen == 1].tolist() for row, seen in zip(ids, mask, strict=True)]
    expected = sorted(
        row[: len(prefix) + segment] for row, prefix, segment in zip(before, prefixes, segments, strict=True)
    )
    assert found == expected
    assert layout.position_N.max() < ids.shape[1]


def _longest(rows: list[torch.Tensor], prefixes: list[list[int]], segments: list[int]) -> Any:
    """Rows of attention with the prompt and segment they hold: the longest first, as they were."""
    lengths = [len(prefix) + segment for prefix, segment in zip(prefixes, segments, strict=True)]
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [(row, prefixes[index], segments[index]) for row, index in zip(rows, order, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"num_iterations": 2, "steps_per_generation": 4},
        {"beta": 0.1, "num_iterations": 2},
        {"mask_truncated_completions": True},
        {"loss_type": "bnpo"},
        {"gradient_checkpointing": True},
    ],
    ids=["plain", "mu = 2", "reference", "truncated", "TRL's slices", "checkpointing"],
)
@pytest.mark.parametrize("limit", [None, 60])
def test_training_moves_the_weights_as_trl_does(build: Any, settings: dict[str, Any], limit: int | None) -> None:
    settings = SAMPLED | settings
    batching = BatchingSettings(share_prompts=True, max_tokens_per_microbatch=limit)
    theirs = trained(forced(build(GRPOTrainer, reward_funcs=now_and_then, **settings)))
    ours = trained(forced(build(TinyZeroTrainer, reward_funcs=now_and_then, batching=batching, **settings)))
    assert (theirs - ours).abs().max() <= 1e-6


def test_an_adapter_moves_as_under_trl(build: Any) -> None:
    from peft import LoraConfig

    ends = []
    for trainer_class, extras in ((GRPOTrainer, {}), (TinyZeroTrainer, {"batching": SHARED})):
        torch.manual_seed(5)
        adapter = LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        )
        settings = {**SAMPLED, "learning_rate": 0.01, "reward_funcs": now_and_then, "peft_config": adapter, **extras}
        ends.append(trained(forced(build(trainer_class, **settings))))
    assert (ends[0] - ends[1]).abs().max() <= 1e-6


def test_a_prompt_is_computed_once_for_the_rows_of_a_micro_batch(build: Any) -> None:
    trainer = forced(build(TinyZeroTrainer, batching=SHARED, max_steps=1))
    computed = []
    trainer.model.base_model.register_forward_pre_hook(
        lambda module, words, named: computed.append(named["input_ids"].numel()), with_kwargs=True
    )
    trainer.model.train()
    batch = trainer._generate_and_score_completions(list(trainer.train_dataset)[:4] * 4)
    computed.clear()
    trainer.policy_logps(batch)
    numbers = prompt_numbers(batch["prompt_ids"], batch["prompt_mask"])
    prompts = {int(number): int(mask.sum()) for number, mask in zip(numbers, batch["prompt_mask"], strict=True)}
    assert sum(computed) == int(batch["completion_mask"].sum()) + sum(length - 1 for length in prompts.values())


def test_rows_of_a_prompt_are_cut_apart_only_by_the_budget() -> None:
    class Alone:
        device = torch.device("cpu")
        gather = staticmethod(lambda values: values)

    prompts = torch.tensor([0, 1, 0, 1, 0, 1])
    sizes = torch.tensor([[4, 2], [4, 9], [4, 3], [4, 1], [4, 8], [4, 5]])
    found = cut(
        torch.arange(6), sizes, prompt_B=prompts, settings=BatchingSettings(share_prompts=True, max_tokens_per_microbatch=27),
        rows_at_once=6, accelerator=Alone(),
    )  # fmt: skip
    assert [part.tolist() for part, _ in found.chunks()] == [[1, 5, 3], [4, 2, 0]]


@given(
    rows=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20), st.booleans()), min_size=1, max_size=7),
    budget=st.integers(1, 150),
)
def test_no_other_cut_costs_less(rows: list[tuple[int, int, bool]], budget: int) -> None:
    prompts, completions, shares = (list(column) for column in zip(*rows, strict=True))
    prompts = [prompts[max(at for at in range(index + 1) if at == 0 or not shares[at])] for index in range(len(rows))]
    overhead = 0.01 * (sum(prompts) + sum(completions))

    def cost(sizes: list[int]) -> float:
        total, start = 0.0, 0
        for size in sizes:
            part = range(start, start + size)
            if size > 1 and sum(prompts[row] + completions[row] for row in part) > budget:
                return float("inf")
            total += sum(completions[row] + prompts[row] * (row == start or not shares[row]) for row in part) + overhead
            start += size
        return total

    cuts = [[]]
    for _ in rows:
        cuts = [[*sizes, 1] for sizes in cuts] + [[*sizes[:-1], sizes[-1] + 1] for sizes in cuts if sizes]
    chosen = chunk_sizes(prompts, completions, budget=budget, shares_prompt=shares)
    assert cost(chosen) == pytest.approx(min(map(cost, cuts)))


@pytest.mark.parametrize("kind", ["gemma2", "mamba"])
def test_a_model_it_is_not_tested_with_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"batching.share_prompts=true with a model of type {kind}"):
        check_shared_prompts(AutoConfig.for_model(kind))


def test_a_window_of_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="a window of 4096 tokens"):
        check_shared_prompts(AutoConfig.for_model("mistral"))
