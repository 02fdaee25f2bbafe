"""The sampler gives what the model alone would: the same tokens as `generate`, and the log-probabilities of a plain forward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tinyzero_trl.failures import NumericFailure
from tinyzero_trl.generation.decoding import GrowingLayer
from tinyzero_trl.generation.sampler import sample

EOS, PAD = 0, 1
SHAPE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "initializer_range": 0.6,
}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6], [7, 7, 7, 7]]


def make(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SHAPE,
        max_position_embeddings=256,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def test_a_cache_doubles_and_never_exceeds_what_the_longest_completion_needs() -> None:
    layer, capacities = GrowingLayer(max_tokens=600), set()
    for token in range(600):
        keys, values = layer.update(torch.full((2, 1, 1, 4), float(token)), torch.full((2, 1, 1, 4), -float(token)))
        capacities.add(layer._keys.shape[-2])
    assert sorted(capacities) == [257, 515, 600]
    assert keys[1, 0, :, 0].tolist() == list(range(600))
    assert values[0, 0, :, 3].tolist() == [-float(token) for token in range(600)]


def test_greedy_sampling_gives_the_tokens_of_generate() -> None:
    model = make()
    sampled = sample(model, PROMPTS, max_new_tokens=80, temperature=0, eos_token_ids=[EOS], pad_token_id=PAD)
    for prompt, ids in zip(PROMPTS, sampled.completion_ids, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=80, do_sample=False)[0, len(prompt) :]
        assert ids == expected.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_one_forward_pass(temperature: float) -> None:
    model = make()
    sampled = sample(
        model,
        PROMPTS * 8,
        max_new_tokens=90,
        temperature=temperature,
        eos_token_ids=[EOS],
        pad_token_id=PAD,
        seeds=range(40),
    )
    lengths = {len(ids) for ids in sampled.completion_ids}
    assert len(lengths) > 3, "rows must end at different times for this test to mean anything"
    for prompt, ids, logprobs in zip(PROMPTS * 8, sampled.completion_ids, sampled.logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1] / temperature
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(logprobs), expected, atol=1e-4)


def test_samples_follow_the_models_distribution() -> None:
    model = make()
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([PROMPTS[0]])).logits[0, -1], -1)
    num_draws = 4000
    sampled = sample(
        model,
        [PROMPTS[0]] * num_draws,
        max_new_tokens=1,
        temperature=1.0,
        eos_token_ids=[EOS],
        pad_token_id=PAD,
        seeds=range(num_draws),
    )
    counts = torch.bincount(torch.tensor([ids[0] for ids in sampled.completion_ids]), minlength=24)
    for probability, count in zip(probabilities.tolist(), counts.tolist(), strict=True):
        spread = math.sqrt(num_draws * probability * (1 - probability))
        assert abs(count - num_draws * probability) < 4.5 * spread + 1


def test_a_completion_keeps_its_end_token_and_says_when_it_was_cut() -> None:
    sampled = sample(
        make(), PROMPTS * 8, max_new_tokens=12, temperature=1.0, eos_token_ids=[EOS], pad_token_id=PAD, seeds=range(40)
    )
    assert {True, False} == set(sampled.is_truncated)
    for ids, is_truncated in zip(sampled.completion_ids, sampled.is_truncated, strict=True):
        assert EOS not in ids[:-1]
        assert is_truncated == (ids[-1] != EOS)
        assert not is_truncated or len(ids) == 12


def draw(prompts: list[list[int]], seeds: list[int], **settings: Any) -> list[list[int]]:
    return sample(
        make(),
        prompts,
        max_new_tokens=20,
        temperature=1.0,
        eos_token_ids=[EOS],
        pad_token_id=PAD,
        seeds=seeds,
        **settings,
    ).completion_ids


def test_equal_seeds_give_equal_samples_and_other_seeds_do_not() -> None:
    assert draw(PROMPTS, [5, 6, 7, 8, 9]) == draw(PROMPTS, [5, 6, 7, 8, 9])
    assert draw(PROMPTS, [5, 6, 7, 8, 9]) != draw(PROMPTS, [15, 16, 17, 18, 19])
    assert len({tuple(ids) for ids in draw([PROMPTS[0]] * 16, list(range(16)))}) == 16


def test_a_completion_depends_on_its_prompt_and_its_seed_and_not_on_the_batch() -> None:
    prompts, seeds = PROMPTS * 8, list(range(100, 140))
    whole = draw(prompts, seeds)
    assert draw(prompts, seeds, batch_size=3) == whole
    assert draw(prompts[::-1], seeds[::-1]) == whole[::-1]
    assert draw(prompts[7:9], seeds[7:9]) == whole[7:9]
    assert draw(prompts, seeds[::-1]) != whole


def test_sampling_leaves_torchs_own_generator_alone() -> None:
    model, settings = make(), {"max_new_tokens": 5, "eos_token_ids": [EOS], "pad_token_id": PAD}
    before = torch.get_rng_state()
    sample(model, PROMPTS, temperature=1.0, seeds=range(5), **settings)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ValueError, match="seed for each prompt"):
        sample(model, PROMPTS, temperature=1.0, **settings)
    with pytest.raises(ValueError, match="3 seeds for 5 prompts"):
        sample(model, PROMPTS, temperature=1.0, seeds=[1, 2, 3], **settings)


def test_a_model_whose_numbers_broke_is_named_as_that() -> None:
    model = make()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(NumericFailure):
        sample(model, PROMPTS, max_new_tokens=4, temperature=1.0, eos_token_ids=[EOS], pad_token_id=PAD, seeds=range(5))


def test_batches_do_not_change_greedy_answers_and_progress_counts_every_prompt() -> None:
    done: list[tuple[int, int]] = []
    settings: dict[str, Any] = {"max_new_tokens": 40, "temperature": 0, "eos_token_ids": [EOS], "pad_token_id": PAD}
    whole = sample(make(), PROMPTS, **settings)
    parts = sample(
        make(), PROMPTS, batch_size=2, on_progress=lambda rows, tokens: done.append((rows, tokens)), **settings
    )
    assert parts.completion_ids == whole.completion_ids
    assert sum(rows for rows, _ in done) == len(PROMPTS)
    assert sum(tokens for _, tokens in done) == sum(map(len, whole.completion_ids))


def test_a_model_with_sliding_attention_is_sampled_as_generate_does() -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        **SHAPE,
        sliding_window=8,
    )
    model = MistralForCausalLM(config).eval()
    sampled = sample(model, [PROMPTS[2]], max_new_tokens=30, temperature=0, eos_token_ids=[EOS], pad_token_id=PAD)
    expected = model.generate(torch.tensor([PROMPTS[2]]), max_new_tokens=30, do_sample=False)[0, len(PROMPTS[2]) :]
    assert sampled.completion_ids[0] == expected.tolist()
