"""Prompts as token ids, with the tokenizers of the models people use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl.models import prompt_ids, prompts_ids
from tinyzero_trl.tasks import TASKS
from tinyzero_trl.trainer import TinyZeroTrainer

TOKENIZERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
ROW = {"nums": [19, 36, 55], "target": 74}
FORMATS = TASKS["countdown"].formats


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    if not TOKENIZERS.is_dir():
        pytest.skip(f"the real tokenizers are not at {TOKENIZERS}")

    def load(name: str) -> Any:
        folder = tmp_path_factory.mktemp(name)
        if name == "tinyllama":
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(TOKENIZERS / "llama_spm" / file, folder / file)
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.chat_template = (TOKENIZERS / "templates" / "tinyllama-1.1b-chat.jinja").read_text()
            return tokenizer
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(TOKENIZERS / "qwen2" / file, folder / file)
        shutil.copy(TOKENIZERS / "qwen2" / f"tokenizer_config.{name}.json", folder / "tokenizer_config.json")
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
        return AutoTokenizer.from_pretrained(folder)

    return load


NAMES = ["qwen2.5-base", "qwen2.5-instruct", "r1-distill.composed", "tinyllama"]


@pytest.mark.parametrize("name", NAMES)
def test_a_prefilled_assistant_turn_stays_open(tokenizer_of: Any, name: str) -> None:
    tokenizer = tokenizer_of(name)
    row = FORMATS["r1_prefix"](ROW)
    assert row["prompt"][-1]["role"] == "assistant"
    text = tokenizer.decode(prompt_ids(tokenizer, row["prompt"]))
    assert text.endswith(row["prompt"][-1]["content"])
    assert text.endswith("<think>")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["base", "instruct", "r1_prefix"])
def test_no_prompt_has_two_bos_tokens(tokenizer_of: Any, name: str, kind: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = prompt_ids(tokenizer, FORMATS[kind](ROW)["prompt"])
    if tokenizer.bos_token_id is not None:
        assert ids.count(tokenizer.bos_token_id) <= 1
        rendered = tokenizer.decode(ids)
        assert prompt_ids(tokenizer, rendered).count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_that_ends_with_the_user_asks_for_an_assistant_turn(tokenizer_of: Any, name: str) -> None:
    tokenizer = tokenizer_of(name)
    messages = FORMATS["instruct"](ROW)["prompt"]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert prompt_ids(tokenizer, messages) == theirs["input_ids"]


def test_the_trainer_and_the_length_check_see_the_same_ids(build: Any) -> None:
    trainer = build(TinyZeroTrainer)
    tokenizer = trainer.processing_class
    opened = [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "Well.\n<think>"}]
    closed = [{"role": "user", "content": "2 + 2"}]
    for prompts in ([opened, opened], [closed, closed], ["2 + 2 =", "3 ="]):
        assert trainer._tokenize_prompts(prompts)[0] == prompts_ids(tokenizer, prompts)
    text = tokenizer.decode(trainer._tokenize_prompts([opened])[0][0])
    assert text == "<|user|>2 + 2<|end|><|assistant|>Well.\n<think>"


def test_a_conversation_with_a_prefill_trains(build: Any) -> None:
    message = {"role": "user", "content": "2 + 2"}
    rows = [{"prompt": [message, {"role": "assistant", "content": "<think>"}], "prefill": "<think>"} for _ in range(16)]

    def length(completions: Any, **columns: Any) -> list[float]:
        return [1.0 / (1 + len(item[0]["content"])) for item in completions]

    trainer = build(TinyZeroTrainer, rows=rows, reward_funcs=length)
    trainer.train()
    assert trainer.state.global_step == 2
