"""Benchmarks read from files of any shape, asked as the field does, and a whole evaluation on three of them."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_models import make_llama
from tinyzero_trl.evaluation import benchmarks, command_line, evaluating, scores
from tinyzero_trl.evaluation.benchmarks import BENCHMARKS, chosen, load, warning
from tinyzero_trl.evaluation.tables import show
from tinyzero_trl.rewards import verified
from tinyzero_trl.tasks import TASKS


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_benchmarks_that_people_quote_are_there():
    names = [one.name for one in chosen("math500,aime24,aime25,amc23,minerva,olympiadbench,gsm8k")]
    assert names == list(BENCHMARKS)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "p", "answer": "025"}, "025"),
        ({"question": "p", "answer": "48/2 = 24\n#### 1,072"}, "1072"),
        ({"question": "p", "final_answer": ["$2$", "$-2$"]}, "2, -2"),
        ({"Problem": "p", "Answer": 204}, "204"),
        ({"question": "p", "answer": 27.0}, "27"),
        ({"problem": "p", "expected_answer": "$\\frac12$"}, "\\frac12"),
    ],
)
def test_columns_and_golds_are_found_as_the_data_sets_have_them(tmp_path, row, answer):
    (one,) = chosen(f"mine={write(tmp_path / 'a.jsonl', [row])}")
    assert load(one, num_rows=None, seed=0) == [{"problem": "p", "answer": answer, "source": "mine", "level": ""}]


def test_columns_are_named_for_all_benchmarks_or_for_one(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"Frage": "p", "x": "1", "y": "2", "Stufe": 5}])
    words = f"a={a},b={a}"
    one, two = chosen(words, ["problem=Frage", "a.answer=x", "b.answer=y", "level=Stufe"])
    assert load(one, num_rows=None, seed=0)[0]["answer"] == "1"
    assert load(two, num_rows=None, seed=0)[0] == {"problem": "p", "answer": "2", "source": "b", "level": "5"}


def test_a_level_is_its_number_and_none_is_no_level(tmp_path):
    rows = [{"problem": "p", "answer": "1", "level": level} for level in ("Level 5", 3, None)]
    (one,) = chosen(f"math500={write(tmp_path / 'a.jsonl', rows)}")
    assert [row["level"] for row in load(one, num_rows=None, seed=0)] == ["5", "3", ""]


def test_a_folder_holds_a_file_by_the_name_of_the_benchmark_or_its_test_split(tmp_path):
    write(tmp_path / "aime24.jsonl", [{"problem": "by name", "answer": "1"}])
    pq.write_table(pa.table({"problem": ["by split"], "answer": ["1"]}), tmp_path / "test.parquet")
    for name, expected in (("aime24", "by name"), ("amc23", "by split")):
        (one,) = chosen(f"{name}={tmp_path}")
        assert load(one, num_rows=None, seed=0)[0]["problem"] == expected


def test_n_draws_the_same_problems_for_the_same_seed(tmp_path):
    (one,) = chosen(f"m={write(tmp_path / 'm.jsonl', [{'problem': str(i), 'answer': '1'} for i in range(50)])}")
    assert load(one, num_rows=5, seed=1) == load(one, num_rows=5, seed=1) != load(one, num_rows=5, seed=2)


@pytest.mark.parametrize(
    ("words", "columns", "message"),
    [
        ("math5000", [], "there is no 'math5000'; there is math500, aime24"),
        ("math500,math500", [], "names math500 twice"),
        ("math500=", [], "write NAME, or NAME=FILE"),
        ("", [], "--benchmarks is empty"),
        ("a/b=x.jsonl", [], "write NAME, or NAME=FILE"),
        ("aime24=no.jsonl", [], "is not there"),
        ("math500", ["problem"], "write [BENCHMARK.]problem=NAME"),
        ("math500", ["aime24.problem=x"], "names no 'aime24'"),
    ],
)
def test_a_benchmark_that_is_not_there_is_said_in_one_line(words, columns, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        chosen(words, columns)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{broken", "cannot be read"),
        ('{"text": "p"}\n', "has no column problem or question; it has text. Name it with --columns"),
        ('{"problem": "p", "answer": ""}\n', "row 0 (from 0) has no 'answer'"),
        ("", "has no rows"),
    ],
)
def test_a_file_that_is_no_benchmark_is_said_in_one_line(tmp_path, content, message):
    file = tmp_path / "a.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match="a: ") as caught:
        load(chosen(f"a={file}")[0], num_rows=None, seed=0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).split(": ", 2)[-1] or "cannot be read" in str(caught.value)


def test_few_problems_with_few_samples_are_not_enough():
    assert "not enough samples" in str(warning(30, 4))
    assert warning(30, 16) is None
    assert warning(500, 1) is None


def test_three_benchmarks_are_answered_by_one_model_loaded_once(tmp_path, monkeypatch, capsys):
    model = make_llama(tmp_path / "model")
    rows = [{"problem": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(6)]
    for name in ("aime24", "gsm8k", "mine"):
        write(tmp_path / f"{name}.jsonl", rows)
    opened, loads = evaluating.opened, []
    monkeypatch.setattr(evaluating, "opened", lambda *a, **k: (loads.append(1), opened(*a, **k))[1])
    words = ["--model_path", str(model), "--output", str(tmp_path / "out"), "--max_new_tokens", "12"]
    names = ",".join(f"{name}={tmp_path}" for name in ("aime24", "gsm8k", "mine"))
    assert command_line.main([*words, "--benchmarks", names, "--k", "4"], task="math") == 0
    printed = capsys.readouterr().out
    assert "aime24: 6 problems x 4, format" in printed
    assert "temperature 0.6, top-p 0.95, up to 12 tokens" in printed
    assert "note: not enough samples: 6 problems with --k 4" in printed
    assert loads == [1]
    folder = tmp_path / "out" / "evaluation" / "base"
    for name in ("aime24", "gsm8k", "mine"):
        summary = scores.read_summary(folder / name)
        assert (summary["task"], summary["benchmark"], summary["k"], summary["top_p"]) == ("math", name, 4, 0.95)
        assert {"pass@1", "pass@2", "pass@4", "maj@4", "outcome/no_answer", "length/mean"} <= summary["metrics"].keys()
        assert len(scores.read_samples(folder / name)) == 24
    greedy = [*words, "--benchmarks", f"gsm8k={tmp_path}", "--temperature", "0", "--name", "greedy"]
    assert command_line.main(greedy, task="math") == 0
    assert command_line.main(["--compare", str(folder), str(tmp_path / "out/evaluation/greedy")]) == 0
    printed = capsys.readouterr().out
    assert "greedy / gsm8k" in printed
    assert "aime24" not in printed.split("Written to")[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("num_hung", "code"), [(1, 0), (2, 3)])
def test_an_evaluation_whose_verifier_gave_up_on_more_than_half_a_percent_fails(
    tmp_path, monkeypatch, capsys, num_hung, code
):
    """E-6, by injection: sympy would work on these answers for hours."""
    file = write(tmp_path / "m.jsonl", [{"problem": f"{i}?", "answer": "12"} for i in range(200)])
    texts = [r"\boxed{(x+y+z)^{200}}"] * num_hung + [r"\boxed{12}"] * (200 - num_hung)
    answers = [{"completion": text, "num_completion_tokens": 9, "is_truncated": False} for text in texts]
    monkeypatch.setattr(evaluating, "opened", lambda *_, **__: nullcontext())
    monkeypatch.setattr(evaluating, "completed", lambda *_: (answers, 1.0))
    words = ["--model_path", str(make_llama(tmp_path / "model")), "--output", str(tmp_path), "--max_new_tokens", "12"]
    capsys.readouterr()  # of writing the model
    assert command_line.main([*words, "--benchmarks", f"m={file}", "--k", "1"], task="math") == code
    said = capsys.readouterr()
    folder = tmp_path / "evaluation" / "base" / "m"
    summary = scores.read_summary(folder)
    assert scores.undecided(summary) == num_hung / 200
    assert summary["metrics"]["pass@1"]["value"] == 1 - num_hung / 200
    assert [sample.outcome for sample in scores.read_samples(folder)].count("undecided") == num_hung
    assert f"note: {num_hung / 200:.2%} of the responses got no verdict" in said.out
    assert (
        said.err == "" if code == 0 else f"evaluate: the verifier gave up on 1.0% in {folder} (bar: 0.5%)" in said.err
    )
    assert said.err.count("\n") == (code != 0)


def samples_of(levels, *, k=1, benchmark="m"):
    rows = [{"problem": "?", "answer": "12", "level": level, "source": benchmark} for level in levels]
    return [
        verified(
            TASKS["math"],
            {**row, "prompt": "", "prefill": ""},
            problem=problem,
            sample=sample,
            completion=r"\boxed{12}" if problem % 2 else "",
            num_completion_tokens=20_000,
            is_truncated=False,
        )
        for problem, row in enumerate(rows)
        for sample in range(k)
    ]


def test_pass_rates_by_level_are_given_where_there_are_levels():
    named = {
        levels: [name for name in scores.metrics(samples_of(levels), task=TASKS["math"]) if name.startswith("pass@1/")]
        for levels in (("", ""), ("1", "2"), ("5", ""))
    }
    assert named == {
        ("", ""): [],
        ("1", "2"): ["pass@1/level 1", "pass@1/level 2"],
        ("5", ""): ["pass@1/no level", "pass@1/level 5"],
    }


def test_the_table_of_seven_benchmarks_fits_80_columns_and_breaks_no_interval(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    samples = samples_of([""] * 40, k=16)
    metrics = {name: e.as_dict() for name, e in scores.metrics(samples, task=TASKS["math"]).items()}
    summary = {
        "name": "final",
        "model": "outputs/math/grpo-qwen-2.5-math-1.5b-20261121-030000/model",
        "temperature": 0.6,
    }
    folders = []
    for name in BENCHMARKS:
        folders.append(tmp_path / name)
        more = {"benchmark": name, "k": 16, "num_problems": 200, "max_new_tokens": 32_768, "metrics": metrics}
        scores.write(folders[-1], summary=summary | more, samples=samples)
    show(folders)
    table = capsys.readouterr().out.split("Written to")[0]
    e = scores.Estimate(**metrics["pass@1"])
    interval = f"[{100 * e.low:.1f}, {100 * e.high:.1f}]"
    assert [line.count(interval) for line in table.splitlines()].count(3) == 7
    assert all(any(line.startswith(name) for line in table.splitlines()) for name in BENCHMARKS)
    assert max(map(len, table.splitlines())) <= 80
    assert len(table.splitlines()) <= 7 * 3 + 6


def test_settings_of_the_field_hold_where_nobody_says(tmp_path):
    from tinyzero_trl.evaluation.plan import Settings, make_plan

    model = make_llama(tmp_path / "model")
    (one,) = chosen("aime24")
    plan = make_plan(Settings(str(model), task="math", benchmark=one, output=tmp_path))
    assert (plan.k, plan.temperature, plan.top_p, plan.default_max_new_tokens, plan.n) == (64, 0.6, 0.95, 32_768, None)
    plan = make_plan(Settings(str(model), task="math", benchmark=one, output=tmp_path, temperature=0.0))
    assert (plan.k, plan.temperature, plan.top_p) == (1, 0.0, 1.0)
    assert benchmarks.BENCHMARKS["gsm8k"].k == 1
