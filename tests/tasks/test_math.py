"""Mathematics: how problems are worded, and where rows come from."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyzero_trl.tasks.math import TASK, data, difficulty, format_math, key_of, load
from tinyzero_trl.tasks.math.data import bare

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROW = {"problem": r"What is $\frac{1}{2} + {x}$?", "answer": "3", "source": "s", "level": "2"}


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def problems(count: int, **more) -> list[dict]:
    return [{"problem": f"How much is {n} + 1?", "answer": str(n + 1), **more} for n in range(count)]


@pytest.mark.parametrize("name", TASK.formats)
def test_a_format_holds_the_problem_as_it_stands_and_ends_in_its_prefill(name):
    worded = TASK.formats[name](ROW)
    prompt = worded["prompt"]
    text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
    assert ROW["problem"] in text
    assert text.rstrip("\n").endswith(worded["prefill"].rstrip("\n"))


def test_no_template_is_the_bare_problem():
    assert TASK.formats["none"](ROW) == {"prompt": ROW["problem"], "prefill": ""}


@pytest.mark.skipif(not (SHARED / "tokenizers").is_dir(), reason="tokenizers of shared/data are not here")
def test_qwen_math_is_what_the_model_was_trained_with():
    import jinja2

    variants = [json.loads(path.read_text()) for path in sorted((SHARED / "tokenizers/qwen2").glob("*config*.json"))]
    template = next(item["chat_template"] for item in variants if "im_start" in str(item.get("chat_template")))
    rendered = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template).render(
        messages=TASK.formats["qwen-math"](ROW)["prompt"], add_generation_prompt=True
    )  # fmt: skip
    assert rendered == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        f"<|im_start|>user\n{ROW['problem']}<|im_end|>\n<|im_start|>assistant\n"
    )


class Chat:
    """A tokenizer with a chat template that puts BOS first, and puts it first again when it reads a text."""

    chat_template, bos_token, bos_token_id = "there is one", "<s>", 1

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt):
        return "<s>" + "".join(f"[{message['role']}]{message['content']}" for message in messages) + "[assistant]"

    def __call__(self, text):
        return {"input_ids": [1, 2]}


def test_format_math_renders_system_prompt_and_instruction():
    worded = format_math(ROW, "Think.", r"{problem} Use \boxed{}.", Chat())
    assert worded["prompt"] == rf"[system]Think.[user]{ROW['problem']} Use \boxed{{}}.[assistant]"
    assert (worded["problem"], worded["answer"]) == (ROW["problem"], "3")
    plain = Chat()
    plain.chat_template = None
    assert format_math(ROW, None, "{problem}", plain)["prompt"] == ROW["problem"]
    assert format_math(ROW, "Think.", "{problem}", plain)["prompt"] == "Think.\n\n" + ROW["problem"]
    with pytest.raises(ValueError, match="exactly once"):
        format_math(ROW, None, "no place", plain)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("48/2 = <<48/2=24>>24\n#### 72", "72"),
        ("#### -1,234,567", "-1234567"),
        ("#### $1,000.50", "1000.50"),
        (r"Then $x = \boxed{\frac{1}{2}}$ and $y=\boxed{\text{no}}$.", r"\text{no}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{7}", "7"),
        (r"so \boxed 7.", "7"),
        (r"\boxed{1} and \boxed{2", "1"),
        ("$(1,2)$", "(1,2)"),
        ("$1$ or $2$", "$1$ or $2$"),
        (" 3 ", "3"),
        ("31,250", "31250"),
        ("1,2", "1,2"),
        ("", ""),
    ],
)
def test_a_gold_is_bare(text, answer):
    assert bare(text) == answer


def test_columns_of_any_name_are_mapped(tmp_path):
    rows = [
        {"extra": {"q": row["problem"], "a": "so #### " + row["answer"]}, "hard": f"Level {at % 5 + 1}"}
        for at, row in enumerate(problems(60))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    names = {"problem_column": "extra.q", "answer_column": "extra.a", "level_column": "hard"}
    found = load(split="train", source=str(tmp_path / "rows.parquet"), **names).to_list()
    assert found[0] == {"problem": "How much is 0 + 1?", "answer": "1", "source": str(tmp_path / "rows.parquet"), "level": "1"}  # fmt: skip
    assert difficulty(found[0]) == "level 1"
    other = load(split="train", source=str(tmp_path / "rows.json"), **names).to_list()
    assert [row["problem"] for row in found] == [row["problem"] for row in other]


def test_a_column_may_have_a_dot_in_its_name(tmp_path):
    rows = [{"q.text": row["problem"], "a": {"final.text": row["answer"]}} for row in problems(60)]
    source = written(tmp_path / "rows.jsonl", rows)
    found = load(split="train", source=source, problem_column="q.text", answer_column="a.final.text").to_list()
    assert (found[0]["problem"], found[0]["answer"]) == ("How much is 0 + 1?", "1")
    with pytest.raises(ValueError, match="there is no column 'q.words'; it has q.text, a"):
        load(split="train", source=source, problem_column="q.words", answer_column="a.final.text")


def test_filters_keep_levels_pass_rates_and_short_problems(tmp_path):
    rows = [{**row, "level": at % 5 + 1, "rate": at / 100 if at % 10 else None} for at, row in enumerate(problems(100))]
    source = written(tmp_path / "rows.jsonl", rows)
    hard = load(split="train", source=source, level_column="level", min_level=3, max_level=4).to_list()
    assert {row["level"] for row in hard} == {"3", "4"}
    middling = load(split="train", source=source, pass_rate_column="rate", min_pass_rate=0.2, max_pass_rate=0.8)
    wanted = {row["problem"] for row in rows if row["rate"] is not None and 0.2 <= row["rate"] <= 0.8}
    assert wanted >= set(middling["problem"])
    assert len(middling) > 40
    short = load(split="train", source=source, max_problem_characters=len("How much is 1 + 1?"))
    assert {row["answer"] for row in short.to_list()} <= {str(n + 1) for n in range(10)}


def test_a_problem_counts_once_and_is_in_one_split(tmp_path):
    rows = problems(400)
    twins = [{**row, "problem": row["problem"].replace("How", " how").replace(" + ", "+")} for row in rows]
    source = written(tmp_path / "rows.jsonl", [*rows, *twins])
    splits = {split: {key_of(row) for row in load(split=split, source=source).to_list()} for split in ("train", "validation", "test")}  # fmt: skip
    assert sum(len(load(split=split, source=source)) for split in splits) == 400
    assert not splits["train"] & splits["test"]
    assert not splits["train"] & splits["validation"]
    assert all(splits.values())


def test_rows_without_a_gold_are_left_out_and_counted(tmp_path):
    source = written(
        tmp_path / "rows.jsonl",
        [*problems(50), {"problem": "Why?", "answer": ""}, {"problem": "How?", "answer": "9" * 10**6}],
    )
    with pytest.warns(UserWarning, match="2 of 52 rows have no problem, or no gold"):
        assert not {"Why?", "How?"} & set(load(split="train", source=source)["problem"])


def test_a_gold_is_one_text_or_number():
    golds = ["1", 2, 3.5, ["4"], ["5", "6"], [], {"x": 7}, float("nan"), None]
    rows = [{"problem": f"{index}?", "answer": gold} for index, gold in enumerate(golds)]
    with pytest.warns(UserWarning, match="5 of 9 rows have no problem, or no gold"):
        kept = data.mapped(rows, "rows", data.Columns(), data.Filters())
    assert [row["answer"] for row in kept] == ["1", "2", "3.5", "4"]


def test_a_mixture_has_the_shares_its_weights_say(tmp_path):
    one = written(tmp_path / "one.jsonl", problems(200))
    other = written(tmp_path / "other.jsonl", [{"q": f"How much is {n} - 1?", "a": str(n - 1)} for n in range(400)])
    mixture = [
        {"source": one, "weight": 1},
        {"source": other, "weight": 3, "problem_column": "q", "answer_column": "a"},
    ]
    rows = load(split="train", source="mixture", mixture=mixture, num_rows=100, seed=3).to_list()
    assert [sum(row["source"] == source for row in rows) for source in (one, other)] == [25, 75]
    assert rows == load(split="train", source="mixture", mixture=mixture, num_rows=100, seed=3).to_list()
    assert len({key_of(row) for row in rows}) == 100
    odd = load(split="train", source="mixture", mixture=mixture, num_rows=99).to_list()
    assert len({key_of(row) for row in odd}) == 99
    whole = load(split="train", source="mixture", mixture=mixture)
    assert len(whole) > 480
    twice = load(
        split="train", source="mixture", mixture=[{"source": one, "weight": 1}, {**mixture[0]}, mixture[1]][1:]
    )
    assert len({key_of(row) for row in twice.to_list()}) == len(twice)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problem_column": "question"}, "there is no column 'question'; it has problem, answer"),
        ({"min_level": 3}, "need level_column"),
        ({"min_pass_rate": 0.1}, "need pass_rate_column"),
        ({"level_column": "answer", "min_level": "hard"}, "min_level must be a number, got 'hard'"),
        ({"level_column": "answer", "min_level": 5, "max_level": 3}, "min_level 5 is above max_level 3"),
        ({"problem_column": 3}, "problem_column must be a name, got 3"),
        ({"max_problem_characters": 1}, "none of 50 rows is left"),
        ({"split_rule": "tinyzero"}, "split rule problem only"),
        ({"mixture": []}, "go together"),
        ({"source": "mixture"}, "go together"),
        ({"source": "mixture", "mixture": []}, "must be a list"),
        ({"source": "mixture", "mixture": [{"source": "generated", "weight": 1}], "min_level": 1}, "belong to its entries"),
        ({"source": "mixture", "mixture": [{"source": "generated"}]}, "needs a weight above 0"),
        ({"source": "mixture", "mixture": [{"weight": 1}]}, "has source, weight"),
        ({"source": "mixture", "mixture": [{"source": "x.json", "weight": 1, "answer_colum": "a"}]}, "x.json takes no answer_colum; it takes answer_column"),
        ({"source": "generated", "num_rows": 5, "level_column": "x"}, "ready as it is"),
        ({"source": "no/such/file.jsonl"}, "no data file"),
        ({"source": str(Path(__file__).parent), "problem_column": "q"}, "not made by a prepare script: it has no card.json; name a .parquet"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, arguments, message):
    source = written(tmp_path / "rows.jsonl", problems(50))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load(**{"split": "train", "source": source, **arguments})
    assert "\n" not in str(error.value)


def test_datasets_of_the_hub_are_asked_for_as_they_lie_there(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config=None, *, split, **files):
        asked.append((name, config, split, files))
        chat = [{"role": "user", "content": f"... {data._DAPO_BEFORE}\n\nWhat is 1+1?\n\n{data._DAPO_AFTER}"}]
        return datasets.Dataset.from_list(
            [{"question": f"{n}?", "answer": f"#### {n}", "prompt": chat, "reward_model": {"ground_truth": "2"},
              "extra_info": {"question": f"{n}!", "answer": str(n)}} for n in range(9)]
        )  # fmt: skip

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load(split="train", source="openai/gsm8k")[0]["answer"] == "0"
    zoo = load(split="train", source="hkust-nlp/SimpleRL-Zoo-Data/simplelr_qwen_level3to5")
    assert zoo[0]["problem"] == "0!"
    dapo = load(split="train", source="BytedTsinghua-SIA/DAPO-Math-17k")
    assert dapo.to_list() == [{"problem": "What is 1+1?", "answer": "2", "source": "BytedTsinghua-SIA/DAPO-Math-17k", "level": ""}]  # fmt: skip
    assert asked == [
        ("openai/gsm8k", "main", "train", {}),
        ("hkust-nlp/SimpleRL-Zoo-Data", None, "train", {"data_files": "simplelr_qwen_level3to5/train.parquet"}),
        ("BytedTsinghua-SIA/DAPO-Math-17k", None, "train", {}),
    ]


@pytest.mark.skipif(not (SHARED / "math").is_dir(), reason="data sets of shared/data are not here")
def test_real_data_sets_are_read():
    gsm8k = load(split="train", source=str(SHARED / "math/gsm8k_train.jsonl"), problem_column="question")
    assert len(gsm8k) > 7200
    assert all(row["answer"].lstrip("-").replace(".", "").isdigit() for row in gsm8k.to_list())
    hard = load(split="train", source=str(SHARED / "math/math_train_7k.jsonl"), level_column="level", min_level=5)
    assert len(hard) > 1500
