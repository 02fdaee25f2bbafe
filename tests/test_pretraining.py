"""Pre-training from nothing: its problems, its tokenizer, its batches, and the model that ships."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tinyzero_trl import config, pretraining
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.models import load_path
from tinyzero_trl.pretraining import Text, stages
from tinyzero_trl.pretraining.scratch import fixed_sentences, new_llama
from tinyzero_trl.tasks import countdown, multiplication

REPO = Path(__file__).resolve().parents[1]
TINY = REPO / "src" / "tinyzero_trl" / "tiny"
PROMPTS = [
    countdown.format_base({"nums": [19, 36, 55], "target": 74})["prompt"],
    multiplication.format_base({"a": 12, "b": 99})["prompt"],
]
SHARES = {
    "countdown": {"num_rows": 150, "gives_up": [0.5]},
    "multiplication": {"num_rows": 50, "guesses": 0.5},
}


@pytest.fixture(scope="module")
def rows_by_task() -> dict[str, list[dict[str, Any]]]:
    return pretraining.problems(
        {
            "countdown": {"source": "generated", "num_rows": 400, "max_numbers": 3},
            "multiplication": {"source": "generated", "num_rows": 100, "min_factor": 10, "max_factor": 99},
        }
    )


@pytest.fixture(scope="module")
def texts(rows_by_task: dict[str, list[dict[str, Any]]]) -> list[Text]:
    return pretraining.stage(rows_by_task, SHARES, format_name="base", seed=3)


@pytest.fixture(scope="module")
def tokenizer(texts: list[Text]) -> Any:
    return pretraining.tokenizer_for(texts, vocab_size=290, max_length=256)


def test_no_problem_of_pre_training_is_held_out(rows_by_task: dict[str, list[dict[str, Any]]]) -> None:
    assert {countdown.split_of(row) for row in rows_by_task["countdown"]} == {"train"}
    assert {multiplication.split_of(row) for row in rows_by_task["multiplication"]} == {"train"}


def test_the_recipes_draw_from_the_training_split_alone() -> None:
    for name, words in (("sft-tiny", ["model.model_name_or_path=x"]), ("sft-tiny-arithmetic", [])):
        cfg = config.compose([f"+countdown={name}", *words], program="sft")
        assert all("split" not in spec for spec in cfg.data.values()), "problems() sets the split"
        assert all(set(shares) == {"countdown", "multiplication"} for _, shares in pretraining.stages_of(cfg))
    cfg = config.compose(["+countdown=sft-tiny-search"], program="sft")
    assert dict(cfg.data.countdown) == {"source": "Jiayi-Pan/Countdown-Tasks-3to4", "split_rule": "tinyzero"}
    assert all(set(shares) == {"countdown"} for _, shares in pretraining.stages_of(cfg))


def test_a_stage_holds_the_shares_it_names_and_repeats_with_its_seed(
    rows_by_task: dict[str, list[dict[str, Any]]], texts: list[Text]
) -> None:
    assert len(texts) == 200
    assert sum("What is" in text.prompt for text in texts) == 50
    assert pretraining.stage(rows_by_task, SHARES, format_name="base", seed=3) == texts
    assert pretraining.stage(rows_by_task, SHARES, format_name="base", seed=4) != texts


def test_what_a_prompt_says_every_time_is_found_between_its_numbers() -> None:
    prompts = [f"Once upon a time {n} was here, and {n + 1} too; {word}." for n, word in enumerate(("yes", "no"))]
    assert fixed_sentences(prompts) == ["Once upon a time ", " was here, and "]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_costs_few_tokens_and_a_digit_is_one(tokenizer: Any, prompt: str) -> None:
    ids = tokenizer(prompt)["input_ids"]
    assert len(ids) <= 30
    assert tokenizer.decode(ids) == prompt
    digits = [token for token in tokenizer.convert_ids_to_tokens(ids) if token.isdigit()]
    assert len(digits) >= 5
    assert all(len(token) == 1 for token in digits)


def test_a_whole_number_and_a_result_are_one_token_each(rows_by_task: dict[str, list[dict[str, Any]]]) -> None:
    share = {"thoughts": "trees", "num_rows": 300, "gives_up": [0.0], "max_attempts": 20}
    texts = pretraining.stage(rows_by_task, {"countdown": share}, format_name="base", seed=3)
    tokenizer = pretraining.tokenizer_for(texts, vocab_size=620, max_length=512, numbers="whole")
    assert tokenizer.tokenize("48 + 17 = 65\n  - 55 = 10") == ["48", "Ġ+Ġ", "17", "Ġ=Ġ65", "ĊĠĠ-Ġ", "55", "Ġ=Ġ10"]
    for text in texts[:50]:
        alone, whole = (tokenizer(value)["input_ids"] for value in (text.prompt, text.prompt + text.completion))
        assert whole[: len(alone)] == alone
        assert tokenizer.decode(whole) == text.prompt + text.completion


def test_a_prompt_is_tokenized_alike_with_and_without_its_completion(tokenizer: Any, texts: list[Text]) -> None:
    for text in texts[:50]:
        alone, whole = (tokenizer(value)["input_ids"] for value in (text.prompt, text.prompt + text.completion))
        assert whole[: len(alone)] == alone


def test_any_text_can_be_encoded(tokenizer: Any) -> None:
    for text in ("naïve – 测试 🙂\t\x00", "12\n\n34"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_model_is_sharpened_by_a_factor_on_its_logits() -> None:
    import torch

    shape = {"vocab_size": 290, "max_length": 64, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    texts = [Text(prompt, "\n1 + 2 = 3") for prompt in PROMPTS]

    def logits(sharpen: float) -> torch.Tensor:
        cfg = OmegaConf.create({"scratch": {**shape, **heads}, "trainer": {"seed": 0}, "sharpen": sharpen})
        model, _ = pretraining.start(cfg, texts, None)
        return model(torch.arange(10)[None]).logits

    torch.testing.assert_close(logits(2.5), 2.5 * logits(1.0))


def test_new_tokens_are_whole_texts_that_start_near_what_they_are_like(tokenizer: Any) -> None:
    import torch

    shape: dict[str, Any] = {
        **{"max_length": 64, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16},
        **{"num_attention_heads": 2, "num_key_value_heads": 2},
    }
    weights = []
    for _ in range(2):
        tokens = copy.deepcopy(tokenizer)
        model = new_llama(tokens, seed=0, **shape)
        before = model.get_input_embeddings().weight.detach().clone()
        stages._add_tokens(model, tokens, [[", from ", "7"], [", - ", "8"]], seed=0)
        assert len(tokens) == len(tokenizer) + 2
        assert tokens.tokenize("1, from 2, - 3") == ["1", ", from ", "2", ", - ", "3"]
        assert tokens.decode(tokens("1, from 2, - 3")["input_ids"]) == "1, from 2, - 3"
        weight = model.get_output_embeddings().weight.detach()
        torch.testing.assert_close(weight[: len(tokenizer)], before[: len(tokenizer)])
        nearest = (weight[-2:, None] - before[None]).norm(dim=-1).argmin(dim=1)
        assert nearest.tolist() == tokens.convert_tokens_to_ids(["7", "8"])
        weights.append(weight)
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize(
    ("pairs", "fault"),
    [
        ([["\n</think>", " = 1"]], r"new_tokens: '\\n</think>' is a token of .*tiny_search already"),
        ([[", into ", " into nothing "]], "new_tokens: ' into nothing ', from which ', into ' starts, is no token of "),
        ([[", into ", " = 1"], [", into ", " = 2"]], "new_tokens: ', into ' is named twice"),
        (
            [["", " = 1"]],
            r"new_tokens: a pair is the new text and a token of the model that it is like; got \['', ' = 1'\]",
        ),
    ],
)
def test_new_tokens_that_a_model_cannot_get_are_refused_before_rows_are_read(
    pairs: list[list[str]], fault: str
) -> None:
    words = ["+countdown=sft-tiny-search-checking", "model.model_name_or_path=tiny-search"]
    cfg = config.compose(words, program="sft")
    cfg.new_tokens = pairs

    def check() -> None:
        pretraining.stages_of(cfg)
        config.check_pretraining(cfg)

    with pytest.raises(ConfigError, match=fault):
        check()


def test_new_tokens_without_a_named_model_are_refused() -> None:
    cfg = config.compose(["+countdown=sft-tiny-arithmetic"], program="sft")
    cfg.new_tokens = [[", from ", "7"]]
    with pytest.raises(ConfigError, match=r"new_tokens are for a model that is named by model\.model_name_or_path"):
        pretraining.stages_of(cfg)


def test_the_loss_is_on_the_completion_and_its_end(tokenizer: Any, texts: list[Text]) -> None:
    row = pretraining.examples(texts[:1], tokenizer)[0]
    learnt = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learnt[:-1]) == texts[0].completion
    assert learnt[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row["input_ids"][: -len(learnt)]) == texts[0].prompt


def test_rows_are_dealt_into_batches_of_like_length_without_loss() -> None:
    rows = [{"input_ids": list(range(n % 50 + 1)), "labels": [n]} for n in range(64 * 4 * 2)]
    dealt = list(pretraining.dealt(rows, batch_size=4, seed=0))
    assert sorted(row["labels"][0] for row in dealt) == list(range(len(rows)))
    for start in range(0, len(dealt), 4):
        lengths = [len(row["input_ids"]) for row in dealt[start : start + 4]]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (
            ["stages=[{seed: 1, countdown: {num_rows: 5, gives_upp: [0.5]}}]"],
            "countdown takes num_rows (required), thoughts and skips_checking",
        ),
        (["stages=[{seed: 1, countdown: {}}]"], "countdown takes num_rows (required)"),
        (
            ["stages=[{seed: 1, countdown: {num_rows: 5, thoughts: treez}}]"],
            "countdown: thoughts must be one of expressions, trees, got 'treez'",
        ),
        (["stages=[{countdown: {num_rows: 5}}]"], "stage 1 needs seed"),
        (["stages=[{seed: 1, chess: {num_rows: 5}}]"], "draws from 'chess'; there is countdown, multiplication"),
        (["scratch.hiden_size=64"], "there is no key scratch.hiden_size; there is vocab_size"),
        (["scratch.numbers=hole"], "scratch.numbers must be one of digits, whole, got 'hole'"),
        (
            ["stages=[{seed: 1, countdown: {num_rows: 5, thoughts: trees, checks_within: near}}]"],
            "stage 1: countdown: checks_within must be an integer, -1 for never, got 'near'",
        ),
        (
            ["new_tokens=[[a]]"],
            "new_tokens: a pair is the new text and a token of the model that it is like; got ['a']",
        ),
        (["sharpen=0"], "sharpen must be above 0 and below 100, got 0.0"),
        (["model.model_name_or_path=no/such/folder"], "no/such/folder: there is no such folder, and it is no hub id"),
        (["stages=[]"], "stages is empty"),
        (
            ["stages=[{seed: 1, countdown: {num_rows: 5}}]", "trainer.per_device_train_batch_size=2"],
            "stage 1 has 5 rows, and rows are dealt 128 at a time",
        ),
        (["stages=[1]"], "stage 1 must have a seed and, by task, num_rows; got 1"),
        (["format=nonsense"], "format: task countdown has no 'nonsense'"),
        (["data.sudoku={}"], "there is no task 'sudoku' with traces"),
        (["trainer.max_steps=-5"], "trainer.max_steps must be at least 1, or -1"),
        (["trainer.seed=-1"], "trainer.seed must be at least 0"),
        (["trainer.report_to=wandbb"], "there is no 'wandbb'"),
        (["trainer.learning_rat=1"], "did you mean trainer.learning_rate?"),
    ],
)
def test_a_mistake_in_a_supervised_run_is_one_line(
    words: list[str], fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    from tinyzero_trl.failures import exit_code_of
    from tinyzero_trl.sft import train

    assert exit_code_of(train, ["+countdown=sft-tiny-arithmetic", *words]) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert fault in error[-1]
    assert "Traceback" not in "".join(error)


@pytest.mark.slow
def test_the_recipe_shortened_trains_a_model_that_loads_as_it_stands(tmp_path: Path) -> None:
    from tinyzero_trl.sft import train

    def run(name: str, *words: str) -> Path:
        folder = tmp_path / name
        assert train([f"+countdown={name}", f"output_dir={folder}", *words]) == 0
        return folder / "model"

    short = [
        "data={countdown: {source: generated, num_rows: 2000, max_numbers: 3}, "
        "multiplication: {source: generated, num_rows: 200, min_factor: 10, max_factor: 99}}",
        "stages=[{seed: 1, countdown: {num_rows: 1000}, multiplication: {num_rows: 100, guesses: 0.5}}]",
        "trainer.per_device_train_batch_size=16",
        "trainer.max_steps=4",
        "trainer.logging_steps=1",
        "trainer.warmup_steps=0",
        "trainer.save_steps=100",
    ]
    first = run("sft-tiny-arithmetic", *short)
    second = run("sft-tiny", f"model.model_name_or_path={first}", *short)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(second), AutoModelForCausalLM.from_pretrained(second)
    assert tokenizer(PROMPTS[0])["input_ids"] == AutoTokenizer.from_pretrained(first)(PROMPTS[0])["input_ids"]
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)


def test_the_shipped_model_loads_through_auto_classes_with_the_tokenizer_that_trained_it() -> None:
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(TINY), AutoModelForCausalLM.from_pretrained(TINY)
    page = (
        PROMPTS[0]
        + "\n(55 + 36) - 19 = 91 - 19 = 72, no\n55 + (36 / 19), maybe\n</think>\n<answer>1</answer>"
        + PROMPTS[1]
    )
    assert tokenizer(page)["input_ids"] == Tokenizer.from_file(str(TINY / "tokenizer.json")).encode(page).ids
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


@pytest.mark.parametrize(("name", "most"), [("tiny", 0.35), ("tiny-search", 0.25)])
def test_a_shipped_model_is_small_safe_and_says_where_it_comes_from(name: str, most: float) -> None:
    folder = Path(load_path(name))
    files = [path for path in folder.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert not [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    origin = json.loads((folder / "origin.json").read_text())
    assert {"commands", "seeds", "evaluation", "problems"} <= origin.keys()
    value = origin["evaluation"]["pass@1"]
    assert value["low"] <= value["value"] <= value["high"] <= most, "there is something left to learn"


def test_the_shipped_model_thinks_before_it_answers() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tinyzero_trl.generation.sampler import sample

    torch.set_num_threads(1)
    tokenizer, model = AutoTokenizer.from_pretrained(TINY), AutoModelForCausalLM.from_pretrained(TINY).eval()
    rows = countdown.load(split="test", source="generated", num_rows=64, max_numbers=3, seed=9).to_list()
    sampled = sample(
        model,
        tokenizer([countdown.format_base(row)["prompt"] for row in rows])["input_ids"],
        max_new_tokens=224,
        temperature=1.0,
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
        seeds=range(64),
    )
    responses = ["<think>" + text for text in tokenizer.batch_decode(sampled.completion_ids, skip_special_tokens=True)]
    assert sum(countdown.exact_format(response) for response in responses) >= 58
    solved = sum(countdown.equation(response, **row) for response, row in zip(responses, rows, strict=True))
    assert 4 <= solved <= 32
