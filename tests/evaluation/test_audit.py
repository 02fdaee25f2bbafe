"""The second grader: what it calls right, how it lists where it and our verifier differ, and how often they do on real outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyzero_trl.evaluation import audit, command_line, scores, second_graders
from tinyzero_trl.rewards import verified
from tinyzero_trl.tasks import TASKS

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROLLOUTS = DATA / "rollouts" / "gsm8k_openai_1600.jsonl"
MATH = DATA / "math" / "math_train_7k.jsonl"


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        ("40 + 5 - 3", True),
        ("5-3+40", True),
        ("40 + 5 - 3 = 42", False),
        ("40 + 3 - 5", False),
        ("40 + 5 - 3 + 3 - 3", False),
        ("40 // 1", False),
        ("40 ** 5 ** 3", False),
        ("__import__('os').abort()", False),
        ("40 / (5 - 5)", False),
        ("(" * 5000 + "1" + ")" * 5000, False),
        ("-" * 900 + "1", False),
        ("\x00", False),
        ("", False),
    ],
)
def test_an_expression_is_read_by_pythons_parser_and_never_run(answer, is_correct):
    response = f"<think>40 + 5</think> <answer>{answer}</answer>"
    assert second_graders.countdown(response, nums=[3, 5, 40], target=42) is is_correct
    assert (TASKS["countdown"].verify(response, nums=[3, 5, 40], target=42).outcome == "correct") is is_correct


def test_the_second_grader_of_countdown_has_its_own_rule_of_what_the_answer_is():
    two = "<think>x</think><answer>1</answer> no, <answer>40 + 5 - 3</answer>"
    assert second_graders.countdown(two, nums=[3, 5, 40], target=42)
    assert TASKS["countdown"].verify(two, nums=[3, 5, 40], target=42).outcome == "bad_format"


def test_products_are_compared_as_digits():
    assert second_graders.multiplication("<answer> 48\n</answer>", a=12, b=4)
    assert not second_graders.multiplication("<answer>480</answer>", a=12, b=4)
    assert not second_graders.multiplication("48", a=12, b=4)


def evaluated(folder, task, responses):
    """An evaluation of the given (row, response) pairs."""
    samples = [
        verified(
            TASKS[task],
            {**row, "prompt": "", "prefill": ""},
            problem=problem,
            sample=0,
            completion=response,
            num_completion_tokens=len(response),
            is_truncated=False,
        )
        for problem, (row, response) in enumerate(responses)
    ]
    metrics = {name: e.as_dict() for name, e in scores.metrics(samples, task=TASKS[task]).items()}
    scores.write(
        folder, summary={"name": "final", "task": task, "temperature": 1.0, "metrics": metrics}, samples=samples
    )
    return folder


@pytest.mark.slow
def test_every_disagreement_is_listed_and_what_hangs_the_second_grader_is_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "CPU_SECONDS", 1.0)
    row = {"problem": "?", "source": "", "level": "", "answer": "12"}
    responses = [
        (row, r"So $\boxed{12}$."),
        (row, r"So $\boxed{13}$."),
        (row, r"<think>It is $\boxed{12}$, or so"),
        (row, r"So $\boxed{(9!)!!+2}$."),
    ]
    evaluated(tmp_path / "mine", "math", responses)
    assert command_line.main(["--audit", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "disagrees on 1 of 4 samples, 33.33%" in printed
    assert "1 no_answer here and correct there; it could not decide 1" in printed
    assert "problem 2, sample 0: no_answer here, correct there; expected 12, found None" in printed
    assert "note: that is more than 2%" in printed
    content = json.loads((tmp_path / "mine" / "audit.json").read_text())
    assert (content["num_samples"], content["num_undecided"], content["num_disagreements"]) == (4, 1, 1)
    assert content["disagreement"]["n"] == 3
    (one,) = content["disagreements"]
    assert (one["problem"], one["answer"], one["second"]) == (2, "12", "correct")
    assert one["response_end"].endswith("or so")
    evaluated(tmp_path / "mine", "math", responses[:1])
    assert not (tmp_path / "mine" / "audit.json").exists()


def test_what_is_no_evaluation_or_has_no_second_grader_is_not_audited(tmp_path, capsys):
    assert command_line.main(["--audit", str(tmp_path)]) == 2
    assert "is not an evaluation: it has no summary.json" in capsys.readouterr().err
    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import replace\nfrom tinyzero_trl.tasks import TASKS\nTASK = replace(TASKS['countdown'], name='own')\n"
    )
    right = ({"nums": [1, 2], "target": 3}, "<answer>1 + 2</answer>")
    folder = evaluated(tmp_path / "own", "countdown", [right])
    summary = json.loads((folder / "summary.json").read_text()) | {"task": f"{file}:TASK"}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert command_line.main(["--audit", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"there is no second grader of {file}:TASK; there is countdown, math, multiplication" in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not ROLLOUTS.is_file(), reason=f"the labelled outputs are not in {ROLLOUTS}")
def test_on_real_outputs_the_two_graders_disagree_on_at_most_2_percent(tmp_path):
    """OpenAI's labelled GSM8K outputs (E-7)."""
    rows = [json.loads(line) for line in ROLLOUTS.read_text(encoding="utf-8").splitlines()]
    pairs = [
        ({"problem": row["question"], "answer": row["gold"], "source": row["model"], "level": ""}, row["completion"])
        for row in rows
    ]
    content = audit.audit(evaluated(tmp_path / "openai", "math", pairs))
    for one in content["disagreements"]:
        print(one)
    assert content["num_undecided"] == 0
    assert content["num_disagreements"] <= 0.02 * len(rows)


@pytest.mark.nightly
@pytest.mark.skipif(not MATH.is_file(), reason=f"the problems are not in {MATH}")
def test_on_golds_boxed_for_their_own_and_for_another_problem_the_two_graders_agree(tmp_path):
    rows = [json.loads(line) for line in MATH.read_text(encoding="utf-8").splitlines()][::3]
    pairs = [
        ({**row, "level": str(row["level"])}, f"<think>3 + 4 = 7</think>Therefore the answer is $\\boxed{{{answer}}}$.")
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
        for answer in (row["answer"], other["answer"])
    ]
    content = audit.audit(evaluated(tmp_path / "math", "math", pairs))
    assert content["num_samples"] == 4980
    assert content["num_undecided"] == 0
    assert content["disagreements"] == []
