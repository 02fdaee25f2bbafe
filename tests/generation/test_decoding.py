"""Rows join and leave the batch, and several cohorts share a pass; every completion stays what the model alone gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tinyzero_trl.generation.decoding import GrowingLayer, ModelDecoder, PlainDecoder, decoder_of
from tinyzero_trl.generation.sampler import Sampled, sample

EOS, PAD = 0, 1
SHAPE: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "initializer_range": 0.3,
}
KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "llama with shared keys": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama 3": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral without a window": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
}
OTHERS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "mistral with a window": (MistralForCausalLM, MistralConfig, {"sliding_window": 8}),
    "qwen2 with windows in some layers": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "llama of a rotation that depends on the length": (
        LlamaForCausalLM,
        LlamaConfig,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
}
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6], [7, 7, 7, 7]] * 4
"""20 rows, of 5 different prompts."""


def make(kind: str) -> Any:
    model_class, config_class, changes = (KINDS | OTHERS)[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SHAPE, **changes})).eval()
    for name, parameter in model.named_parameters():  # biases and norms begin as zeros and ones, which hides mistakes
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def draw(model: Any, prompts: list[list[int]] = PROMPTS, first_seed: int = 0, **settings: Any) -> Sampled:
    asked = {"max_new_tokens": 24, "temperature": 1.0, "seeds": range(first_seed, first_seed + len(prompts))}
    return sample(model, prompts, eos_token_ids=[EOS], pad_token_id=PAD, **{**asked, **settings})


def one_by_one(model: Any, **settings: Any) -> Sampled:
    alone = [draw(model, [prompt], first_seed=row, **settings) for row, prompt in enumerate(PROMPTS)]
    return Sampled(
        [one.completion_ids[0] for one in alone],
        [one.logprobs[0] for one in alone],
        [one.is_truncated[0] for one in alone],
    )


def decoder(model: Any) -> ModelDecoder:
    return decoder_of(model, pad_token_id=PAD, max_new_tokens=24)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_step_are_the_models_own_whichever_cohorts_share_the_pass(kind: str) -> None:
    model = make(kind)
    plain = decoder(model)
    assert type(plain) is PlainDecoder
    texts, cohorts = [], []
    for prompts in (PROMPTS[:3], PROMPTS, PROMPTS[:1]):
        texts += [list(prompt) for prompt in prompts]
        cohorts.append(plain.read(prompts)[1])
    for token in (3, 20, 7):
        for text in texts:
            text.append(token)
        logits_AV = plain.step(cohorts, torch.full((len(texts),), token))
        for text, logits_V in zip(texts, logits_AV, strict=True):
            with torch.no_grad():
                torch.testing.assert_close(logits_V, model(torch.tensor([text])).logits[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, *OTHERS])
def test_a_row_that_shares_the_batch_is_drawn_as_if_it_were_alone(kind: str) -> None:
    model = make(kind)
    assert (type(decoder(model)) is PlainDecoder) == (kind in KINDS)
    alone = one_by_one(model)
    assert len(set(map(len, alone.completion_ids))) > 4, "rows must end at different times"
    for batch_size in (4, 64):
        together = draw(model, batch_size=batch_size)
        assert together.completion_ids == alone.completion_ids
        assert together.is_truncated == alone.is_truncated
        for ours, theirs in zip(together.logprobs, alone.logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama with shared keys", "mistral with a window"])
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.6}, {"top_p": 0.8}, {"max_new_tokens": 1}])
def test_every_way_to_draw_is_the_same_in_a_batch_that_is_refilled(kind: str, settings: dict[str, Any]) -> None:
    model = make(kind)
    together = draw(model, batch_size=6, **settings)
    assert together.completion_ids == one_by_one(model, **settings).completion_ids


@pytest.mark.parametrize("kind", ["llama with shared keys", "mistral with a window"])
def test_log_probabilities_are_those_of_a_plain_forward_pass(kind: str) -> None:
    model = make(kind)
    sampled = draw(model, batch_size=8)
    for prompt, ids, logprobs in zip(PROMPTS, sampled.completion_ids, sampled.logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), expected, atol=1e-5, rtol=1e-5)


def test_waiting_prompts_join_as_rows_leave_so_that_the_batch_stays_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    step = PlainDecoder.step

    def counted(self: PlainDecoder, cohorts: Any, tokens_A: torch.Tensor) -> torch.Tensor:
        widths.append(len(tokens_A))
        return step(self, cohorts, tokens_A)

    monkeypatch.setattr(PlainDecoder, "step", counted)
    lengths = [len(ids) for ids in draw(make("llama"), PROMPTS * 12, batch_size=16).completion_ids]
    num_waves = sum(max(lengths[at : at + 16]) for at in range(0, len(lengths), 16))
    assert max(widths) == 16
    while_prompts_wait = widths[: -max(lengths)]
    assert sum(while_prompts_wait) / len(while_prompts_wait) > 0.8 * 16
    assert len(widths) < 0.7 * num_waves


def test_equal_prompts_are_read_once() -> None:
    model, num_read = make("llama"), []
    plain = decoder(model)
    model.model.register_forward_pre_hook(
        lambda _, __, named: num_read.append(len(named["input_ids"])), with_kwargs=True
    )
    logits_BV, cohort = plain.read(PROMPTS)
    assert num_read == [5]
    assert len(cohort) == 20
    assert torch.equal(logits_BV[:5], logits_BV[15:])


@pytest.mark.parametrize("obstacle", ["wrapped", "hook", "hook inside", "derived"])
def test_a_model_that_something_was_added_to_goes_through_its_own_forward_pass(obstacle: str) -> None:
    model, calls = make("llama"), []
    expected = draw(model).completion_ids
    if obstacle == "wrapped":
        forward = model.forward
        model.forward = lambda **named: calls.append(1) or forward(**named)
    elif obstacle == "hook":
        model.register_forward_hook(lambda *_: calls.append(1))
    elif obstacle == "hook inside":
        model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1))
    else:
        model.__class__ = type("Derived", (LlamaForCausalLM,), {})
    assert type(decoder(model)) is ModelDecoder
    assert draw(model).completion_ids == expected
    assert obstacle == "derived" or len(calls) >= max(map(len, expected))


def test_an_adapter_is_part_of_the_model_that_is_sampled() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = make("llama")
    expected = draw(base).completion_ids
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    adapted = draw(model, batch_size=6)
    assert adapted.completion_ids != expected
    assert adapted.completion_ids == one_by_one(model).completion_ids
    assert adapted.completion_ids == draw(model.merge_and_unload().eval(), batch_size=6).completion_ids


def test_half_precision_is_sampled_near_the_models_own_log_probabilities() -> None:
    model = make("llama with shared keys").bfloat16()
    assert type(decoder(model)) is PlainDecoder
    sampled = draw(model, batch_size=6)
    for prompt, ids, logprobs in zip(PROMPTS, sampled.completion_ids, sampled.logprobs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert (torch.tensor(logprobs) - expected).abs().mean() < 0.1


def test_rows_that_leave_the_cache_make_room_and_the_others_keep_their_own() -> None:
    layer = GrowingLayer(max_tokens=20)
    layer.update(torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 3, 4), torch.zeros(6, 2, 3, 4))
    layer.move(torch.tensor([4, 5]), to=torch.tensor([1, 2]), keep=4)
    assert layer.keys[:, 0, 0, 0].tolist() == [0, 4, 5, 3]
    layer.shrink()
    assert len(layer._keys) == 6
    layer.move(torch.tensor([3]), to=torch.tensor([0]), keep=3)
    assert layer.keys[:, 1, 2, 3].tolist() == [3, 4, 5]
    layer.shrink()
    assert len(layer._keys) == 3, "the memory of half the rows is freed"
    assert layer.keys[:, 1, 2, 3].tolist() == [3, 4, 5]
    keys, _ = layer.update(torch.full((3, 2, 1, 4), 9.0), torch.zeros(3, 2, 1, 4))
    assert keys.shape == (3, 2, 4, 4)
    assert keys[:, 0, :, 0].tolist() == [[3, 3, 3, 9], [4, 4, 4, 9], [5, 5, 5, 9]]
