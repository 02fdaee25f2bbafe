"""A completion ends with the token that completes a stop string, and is then not truncated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from small_models import make_llama
from tinyzero_trl.failures import ConfigError
from tinyzero_trl.generation.sampler import Sampled, sample
from tinyzero_trl.models.stop_strings import StopStrings, check_stop, is_truncated
from tinyzero_trl.storage import manifest

EOS, PAD = 0, 1
PROMPTS = [[40 + row, 50, 60 + row] for row in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(make_llama(tmp_path_factory.mktemp("llama"))).eval()


@pytest.fixture(scope="module")
def tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.name_or_path)


def drawn(model: Any, stop: StopStrings | None = None, **settings: Any) -> Sampled:
    seeds = range(len(PROMPTS))
    asked = {"max_new_tokens": 80, "temperature": 1.0, "eos_token_ids": [EOS], "pad_token_id": PAD, "seeds": seeds}
    return sample(model, PROMPTS, **{**asked, **settings}, stop=stop)


def cut(ids: Sequence[int], stop: Sequence[str], tokenizer: Any) -> list[int]:
    """The shortest beginning whose text has a stop string, by decoding every beginning."""
    for length in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:length], skip_special_tokens=True)
        if any(one in text for one in stop):
            return list(ids[:length])
    return list(ids)


@pytest.mark.parametrize(("start", "length"), [(3, 1), (5, 2), (20, 2), (9, 3)])
def test_a_stopped_completion_is_the_unstopped_one_up_to_the_token_that_completes_the_string(
    model: Any, tokenizer: Any, start: int, length: int
) -> None:
    whole = drawn(model)
    longest = max(whole.completion_ids, key=len)
    texts = ["never written", tokenizer.decode(longest, skip_special_tokens=True)[start : start + length]]
    stopped = drawn(model, StopStrings(texts, tokenizer))
    assert stopped.completion_ids == [cut(ids, texts, tokenizer) for ids in whole.completion_ids]
    assert sum(map(len, stopped.completion_ids)) < sum(map(len, whole.completion_ids))
    for before, ids, truncated in zip(whole.completion_ids, stopped.completion_ids, stopped.is_truncated, strict=True):
        assert truncated == (ids == before and ids[-1] != EOS)
    assert all(len(ids) == len(logps) for ids, logps in zip(stopped.completion_ids, stopped.logprobs, strict=True))


def test_a_batch_that_shrinks_as_rows_stop_draws_the_rest_as_before(model: Any, tokenizer: Any) -> None:
    whole = drawn(model)
    stop = [tokenizer.decode(ids, skip_special_tokens=True)[:2] for ids in whole.completion_ids[:8]]
    stopped = drawn(model, StopStrings(sorted(set(filter(None, stop))), tokenizer), batch_size=5)
    assert stopped.completion_ids == [cut(ids, list(filter(None, stop)), tokenizer) for ids in whole.completion_ids]


@pytest.mark.parametrize("stop", ["é", "</answer>", "日本", "\n\n", "🙂!"])
def test_a_string_of_several_tokens_is_complete_with_its_last_token_and_not_before(tokenizer: Any, stop: str) -> None:
    strings = StopStrings([stop], tokenizer)
    ids = tokenizer(f"a long text in front of it, {stop}")["input_ids"]
    closing = strings.closing(len(tokenizer) + 10, "cpu")
    assert strings.is_complete(ids)
    assert closing[ids[-1]]
    assert not closing[len(tokenizer) :].any()
    assert not any(strings.is_complete(ids[:length]) for length in range(len(ids)))
    assert not is_truncated(ids, ends=[EOS], stop=strings)
    assert is_truncated(ids, ends=[EOS], stop=None)
    assert is_truncated(ids[:-1], ends=[EOS], stop=strings)
    assert is_truncated([], ends=[EOS], stop=strings)


def test_special_tokens_are_no_part_of_the_text(tokenizer: Any) -> None:
    strings = StopStrings(["ab"], tokenizer)
    a, b = tokenizer("ab")["input_ids"]
    assert strings.is_complete([a, tokenizer.convert_tokens_to_ids("<|user|>"), b])
    assert not StopStrings(["<|user|>"], tokenizer).is_complete([tokenizer.convert_tokens_to_ids("<|user|>")])


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        ([""], "holds an empty string"),
        (["a", "a"], "names a string twice"),
        (["x<|end|>"], "the special token '<|end|>', which no text shows"),
    ],
)
def test_stop_strings_that_could_not_work_are_refused(tokenizer: Any, stop: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match="generation.stop") as refused:
        check_stop(stop, name="generation.stop", tokenizer=tokenizer)
    assert said in str(refused.value)


def test_requests_to_a_server_and_rows_of_vllm_carry_the_strings() -> None:
    from tinyzero_trl.generation.client import Rows, request_bodies

    (body,) = request_bodies("m", [[1, 2]], Rows([3], [EOS], ["</answer>"]), max_tokens=5)
    assert body["stop"] == ["</answer>"]
    assert body["include_stop_str_in_output"] is True
    (plain,) = request_bodies("m", [[1, 2]], Rows([3], [EOS]), max_tokens=5)
    assert "stop" not in plain


def test_an_evaluation_takes_the_strings_of_the_run_or_of_the_person(model: Any, tmp_path: Path) -> None:
    from tinyzero_trl.evaluation.plan import Settings, make_plan

    run = make_llama(tmp_path / "run" / "model").parent
    manifest.seal(run / "model", step=1)
    (run / "run.yaml").write_text("task: countdown\nformat: base\ngeneration: {stop: ['</answer>']}\n")
    of_run = Settings(str(run / "model"))
    assert make_plan(of_run).stop == ("</answer>",)
    assert make_plan(Settings(str(run / "model"), stop=[])).stop == ()
    assert make_plan(Settings(str(run / "model"), stop=["\n"])).stop == ("\n",)
    with pytest.raises(ValueError, match="--stop holds an empty string"):
        make_plan(Settings(str(run / "model"), stop=[""]))
