"""Problems that a model knows by heart: the cut, the comparison, and a model that was made to remember one problem of two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyzero_trl.evaluation import command_line
from tinyzero_trl.evaluation.contamination import cut, is_verbatim


@pytest.mark.parametrize("text", ["a b", "one two  three\nfour five", "  lead and trail  ", "word", ""])
def test_a_cut_loses_nothing_and_leaves_words_whole(text):
    shown, rest = cut(text)
    assert shown + rest == text
    assert shown.split() + rest.split() == text.split()


@pytest.mark.parametrize(
    ("completion", "rest", "expected"),
    [
        (" in April and May?", " in April and May?", True),
        (" in  April and\nMay? She sold 72.", " in April and May?", True),
        (" in April and June?", " in April and May?", False),
        (" in April", " in April and May?", False),
        ("anything", "", False),
    ],
)
def test_verbatim_is_the_whole_rest_blanks_aside(completion, rest, expected):
    assert is_verbatim(completion, rest) is expected


@pytest.mark.slow
def test_a_model_that_learned_one_problem_by_heart_is_found_out(tmp_path, capsys):
    """A byte-level Llama is trained on one of two texts until it repeats it; the other it has never seen."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from small_models import make_llama

    folder = make_llama(tmp_path / "model")
    known, unknown = "Find x if 2x+3 = 11 now.", "How many even primes are below 9?"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer(known)["input_ids"]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    file = tmp_path / "two.jsonl"
    file.write_text("".join(json.dumps({"problem": text, "answer": "4"}) + "\n" for text in (known, unknown)))
    words = ["--model_path", str(folder), "--benchmarks", f"two={file}", "--contamination", "--output", str(tmp_path)]
    assert command_line.main(words, task="math") == 0
    assert "completes 50.0% of 2 problems verbatim" in capsys.readouterr().out
    (found,) = Path(tmp_path).rglob("contamination.json")
    probes = json.loads(found.read_text())["benchmarks"]["two"]["probes"]
    assert [probe["is_verbatim"] for probe in probes] == [True, False]


def test_a_problem_longer_than_the_model_is_said_before_its_weights_are_read(tmp_path, capsys, monkeypatch):
    from small_models import make_llama
    from tinyzero_trl.evaluation import completions

    monkeypatch.setattr(completions, "opened", lambda *_, **__: pytest.fail("a model was loaded"))
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"problem": "one more " * 400, "answer": "4"}) + "\n")
    words = ["--model_path", str(make_llama(tmp_path / "model")), "--benchmarks", f"long={file}", "--contamination"]
    capsys.readouterr()  # of writing the model
    assert command_line.main([*words, "--output", str(tmp_path)], task="math") == 2
    error = capsys.readouterr().err
    assert "takes 2048: it does not fit" in error
    assert error.count("\n") == 1
