"""Evaluation of every kind of model on a tiny random one; its metrics on responses written by hand."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tinyzero_trl.evaluation import command_line, evaluating, scores, tables
from tinyzero_trl.evaluation.completions import checked_model, prompt_ids_of
from tinyzero_trl.evaluation.plan import Settings, make_plan
from tinyzero_trl.models import identity_of
from tinyzero_trl.models.location import locate
from tinyzero_trl.rewards import verified
from tinyzero_trl.storage import manifest
from tinyzero_trl.tasks import TASKS

REPO = Path(__file__).resolve().parents[2]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% if not loop.last or add_generation_prompt %}"
    "</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A random Llama of a few thousand parameters over bytes, with a chat template."""
    return make_model(tmp_path_factory.mktemp("models") / "random")


def make_model(folder, *, chat_template=TEMPLATE, eos="</s>", context=1024):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token=eos, pad_token="<pad>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def evaluate(model, output, *arguments, task="countdown"):
    argv = ["--model_path", str(model), "--source", "generated", "--n", "6", "--max_new_tokens", "12"]
    return command_line.main([*argv, "--output", str(output), *map(str, arguments)], task=task)


def make_run(folder, model_folder, *, task="countdown", **values):
    shutil.copytree(model_folder, folder / "model")
    manifest.seal(folder / "model", step=3)
    run = {
        "task": task,
        "format": "base",
        "data": {"source": "generated", "min_numbers": 4, "max_numbers": 4, "num_train_rows": 10, "seed": 9},
        "trainer": {"temperature": 0.7, "max_completion_length": 9},
        **values,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    return folder


def test_a_supervised_run_is_evaluated_on_the_data_of_its_task(model_folder, tmp_path):
    data = {"countdown": {"source": "generated", "num_rows": 10, "seed": 4, "min_numbers": 4, "max_numbers": 4}}
    run = make_run(tmp_path, model_folder, data=data)
    plan = make_plan(Settings(model_path=str(run)))
    assert plan.data == {"source": "generated", "min_numbers": 4, "max_numbers": 4}


def sample_of(problem, completion, *, sample=0, is_truncated=False, nums=(3, 5, 40), target=42):
    row = {"nums": list(nums), "target": target, "prompt": "...<think>", "prefill": "<think>"}
    return verified(
        TASKS["countdown"],
        row,
        problem=problem,
        sample=sample,
        completion=completion,
        num_completion_tokens=len(completion),
        is_truncated=is_truncated,
    )


RIGHT = "\n40 - 5 = 35, no\n(40 + 5) - 3 = 45 - 3 = 42, yes\n</think>\n<answer>(40 + 5) - 3</answer>"
UNCHECKED = "\n40 - 5 + 3, maybe\n</think>\n<answer>40 + 5 - 3</answer>"
WRONG = "\n40 - 5 - 3 = 32, yes\n</think>\n<answer>40 - 5 - 3</answer>"


# ---- what is written


@pytest.mark.parametrize("task", ["countdown", "multiplication"])
def test_a_model_folder_is_evaluated_into_a_summary_and_every_sample(model_folder, tmp_path, task, capsys):
    assert evaluate(model_folder, tmp_path, "--k", 2, task=task) == 0
    folder = tmp_path / "evaluation" / "base"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["schema"] == 1
    assert (summary["task"], summary["format"], summary["k"], summary["num_problems"]) == (task, "base", 2, 6)
    assert {"pass@1", "pass@2", "maj@2", "outcome/truncated", "length/mean"} <= summary["metrics"].keys()
    assert all(set(metric) == {"value", "low", "high", "n"} for metric in summary["metrics"].values())
    assert all(m["low"] <= m["value"] <= m["high"] for m in summary["metrics"].values())
    samples = scores.read_samples(folder)
    assert [(s.problem, s.sample) for s in samples] == [(i, j) for i in range(6) for j in range(2)]
    assert all(set(s.row) == set(TASKS[task].columns) for s in samples)
    assert all(s.num_completion_tokens <= 12 for s in samples)
    printed = " ".join(capsys.readouterr().out.split())
    assert "pass@2" in printed
    assert any(s.explanation and s.explanation.split()[0] in printed for s in samples if not s.is_correct)
    assert not list(folder.glob("*.part"))


def test_one_response_of_each_outcome_is_shown_with_why_it_is_not_correct(tmp_path, capsys):
    samples = [sample_of(0, RIGHT), sample_of(1, WRONG), sample_of(2, "\nno", is_truncated=True), sample_of(3, WRONG)]
    figures = {name: e.as_dict() for name, e in scores.metrics(samples, task=TASKS["countdown"]).items()}
    scores.write(
        tmp_path,
        summary={"name": "final", "task": "countdown", "temperature": 1.0, "metrics": figures, "model": "m"},
        samples=samples,
    )
    tables.show([tmp_path])
    printed = capsys.readouterr().out
    assert printed.count("32 is not 42") == printed.count("cut off before") == 1


def test_the_same_call_gives_the_same_problems_and_samples_and_another_seed_others(model_folder, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert evaluate(model_folder, tmp_path, "--name", name, "--seed", seed) == 0
    a, b, c = (scores.read_samples(tmp_path / "evaluation" / name) for name in "abc")
    assert a == b
    assert [sample.row for sample in a] != [sample.row for sample in c]


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(model_folder, tmp_path):
    for name, batch_size in (("together", 64), ("apart", 1)):
        assert evaluate(model_folder, tmp_path, "--name", name, "--batch_size", batch_size) == 0
    together, apart = (scores.read_samples(tmp_path / "evaluation" / name) for name in ("together", "apart"))
    assert together == apart


def test_greedy_answers_do_not_depend_on_the_seed_of_sampling(model_folder, tmp_path):
    assert evaluate(model_folder, tmp_path, "--temperature", 0, "--batch_size", 2) == 0
    assert scores.read_summary(tmp_path / "evaluation" / "base")["temperature"] == 0


def test_an_evaluation_with_other_settings_is_not_replaced_by_accident(model_folder, tmp_path, capsys):
    assert evaluate(model_folder, tmp_path) == 0
    assert evaluate(model_folder, tmp_path) == 0
    assert evaluate(model_folder, tmp_path, "--temperature", 0.5) == 2
    assert "another temperature (1.0, now 0.5)" in capsys.readouterr().err
    assert evaluate(model_folder, tmp_path, "--temperature", 0.5, "--overwrite") == 0


def test_a_summary_stands_only_beside_complete_samples(tmp_path, monkeypatch):
    samples = [sample_of(0, RIGHT)]
    scores.write(tmp_path, summary={"metrics": {}}, samples=samples)
    monkeypatch.setattr("pyarrow.parquet.write_table", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        scores.write(tmp_path, summary={"metrics": {}}, samples=samples)
    assert not (tmp_path / "summary.json").exists()


# ---- which model


def test_a_run_folder_gives_its_own_task_format_source_and_lengths(model_folder, tmp_path):
    run = make_run(tmp_path / "run", model_folder)
    assert command_line.main(["--model_path", str(run), "--n", "3"]) == 0
    summary = scores.read_summary(run / "evaluation" / "final")
    assert (summary["temperature"], summary["max_new_tokens"], summary["model_sha256"] is None) == (0.7, 9, False)
    samples = scores.read_samples(run / "evaluation" / "final")
    assert all(len(sample.row["nums"]) == 4 for sample in samples)


def test_a_base_model_evaluated_into_a_run_folder_answers_the_runs_problems(model_folder, tmp_path, capsys):
    run = make_run(tmp_path / "run", model_folder)
    assert command_line.main(["--model_path", str(model_folder), "--output", str(run), "--n", "3"]) == 0
    assert command_line.main(["--model_path", str(run), "--n", "3"]) == 0
    assert command_line.main(["--compare", *(str(run / "evaluation" / name) for name in ("base", "final"))]) == 0
    assert "+0.0" in capsys.readouterr().out


def test_a_run_that_has_not_ended_gives_its_newest_whole_checkpoint(model_folder, tmp_path):
    run = make_run(tmp_path / "run", model_folder)
    (run / "model").rename(run / "checkpoint-3")
    manifest.seal(run / "checkpoint-3")
    for step in (5, 10):
        (run / f"checkpoint-{step}").mkdir()
        (run / f"checkpoint-{step}" / "config.json").write_text("{}")
    manifest.seal(run / "checkpoint-5")
    (run / "checkpoint-5" / "config.json").write_text("{ }")
    location = locate(str(run))
    assert (location.name, location.path) == ("checkpoint-3", str(run / "checkpoint-3"))


def test_a_checkpoint_knows_its_run_and_an_unfinished_one_is_refused(model_folder, tmp_path):
    run = make_run(tmp_path / "run", model_folder)
    (run / "model").rename(run / "checkpoint-3")
    location = locate(str(run / "checkpoint-3"))
    assert (location.name, location.run_folder, location.run["task"]) == ("checkpoint-3", run, "countdown")
    (run / "checkpoint-3" / "MANIFEST.json").unlink()
    with pytest.raises(ValueError, match="was not finished"):
        locate(str(run / "checkpoint-3"))
    with pytest.raises(ValueError, match=r"without a usable model: checkpoint-3 was not finished"):
        locate(str(run))


def test_a_lora_adapter_is_put_on_the_model_below_it(model_folder, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    adapted = get_peft_model(
        model, LoraConfig(r=2, lora_alpha=1000, target_modules=["v_proj", "o_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    location = locate(str(tmp_path / "adapter"))
    assert (location.path, location.adapter) == (str(model_folder), str(tmp_path / "adapter"))
    assert evaluate(tmp_path / "adapter", tmp_path, "--temperature", 0) == 0
    assert evaluate(model_folder, tmp_path, "--temperature", 0) == 0
    adapted, plain = (scores.read_samples(tmp_path / "evaluation" / name) for name in ("adapter", "base"))
    assert [s.row for s in adapted] == [s.row for s in plain]
    assert [s.completion for s in adapted] != [s.completion for s in plain]


def test_the_word_tiny_and_a_hub_id_are_models():
    assert locate("Qwen/Qwen2.5-0.5B").path == "Qwen/Qwen2.5-0.5B"
    packaged = REPO / "src" / "tinyzero_trl" / "tiny"
    if not packaged.is_dir():
        pytest.skip("the packaged model is not built yet")
    assert locate("tiny").path == str(packaged)


def sealed(folder):
    return hashlib.sha256((folder / "MANIFEST.json").read_bytes()).hexdigest()


def test_the_record_names_the_seal_of_a_checkpoint_that_was_evaluated(model_folder, tmp_path):
    run = make_run(tmp_path / "run", model_folder)
    assert command_line.main(["--model_path", str(run), "--n", "2"]) == 0
    summary = scores.read_summary(run / "evaluation" / "final")
    assert (summary["model_sha256"], summary["model_sha256_of"]) == (sealed(run / "model"), "MANIFEST.json")


@pytest.mark.parametrize("fault", ["changed", "missing", "unsealed", "damaged"])
@pytest.mark.parametrize("name", ["checkpoint-3", "model"])
def test_a_checkpoint_of_ours_whose_seal_is_gone_or_does_not_match_is_refused(
    model_folder, tmp_path, capsys, monkeypatch, fault, name
):
    monkeypatch.setattr(evaluating, "opened", lambda *_, **__: pytest.fail("a model was loaded"))
    run = make_run(tmp_path / "run", model_folder)
    folder = (run / "model").rename(run / name)
    if fault == "changed":
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (folder / "model.safetensors").write_bytes(weights)
    elif fault == "damaged":
        (folder / "MANIFEST.json").write_text("{")
    else:
        (folder / ("MANIFEST.json" if fault == "unsealed" else "generation_config.json")).unlink()
    said = {"changed": "has a changed model.safetensors", "missing": "lacks generation_config.json"}
    said |= {"unsealed": "it has no manifest", "damaged": "has a damaged manifest"}
    for place in (folder, run):
        assert command_line.main(["--model_path", str(place), "--n", "2"]) == 2
        error = capsys.readouterr().err
        assert said[fault] in error
        assert error.count("\n") == 1


def test_a_folder_of_the_hubs_shape_is_known_by_a_hash_that_sha256sum_gives(model_folder, tmp_path):
    import os

    copy = Path(shutil.copytree(model_folder, tmp_path / "checkpoint-500"))
    assert evaluate(copy, tmp_path, "--n", 2) == 0
    summary = scores.read_summary(tmp_path / "evaluation" / "base")
    files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert summary["model_sha256_of"] == files
    command = "set -o pipefail; sha256sum *.safetensors *.json | LC_ALL=C sort -k 2 | sha256sum"
    said = subprocess.run(["bash", "-c", command], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert summary["model_sha256"] == said.split()[0]
    location = locate(str(model_folder))
    assert identity_of(location)["model_sha256"] == summary["model_sha256"]
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert identity_of(locate(str(copy)))["model_sha256"] != summary["model_sha256"]


def test_a_folder_that_lost_its_seal_outside_its_run_is_still_ours(model_folder, tmp_path):
    copy = Path(shutil.copytree(model_folder, tmp_path / "checkpoint-500"))
    (copy / "rollout_state-0.json").write_text("{}")
    with pytest.raises(ValueError, match="was not finished"):
        locate(str(copy))


def test_an_adapters_record_names_the_model_below_it_too(model_folder, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model_folder)}))
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    found = identity_of(locate(str(adapter)))
    assert found["model_sha256_of"] == ["adapter_config.json", "adapter_model.safetensors"]
    assert found["base_model_sha256"] == identity_of(locate(str(model_folder)))["model_sha256"]


def test_of_a_model_of_the_hub_the_record_has_the_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "models--org--name"
    for file, text in {"refs/main": commit, f"snapshots/{commit}/config.json": "{}"}.items():
        (place / file).parent.mkdir(parents=True)
        (place / file).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert identity_of(locate("org/name")) == {"model_sha256": None, "model_commit": commit}
    assert identity_of(locate("org/other")) == {"model_sha256": None, "model_commit": None}


# ---- prompts as in training


@pytest.mark.parametrize("format_name", ["base", "instruct", "r1_prefix"])
def test_prompts_are_tokenised_as_training_does(model_folder, tmp_path, format_name):
    plan = make_plan(Settings(str(model_folder), task="countdown", format=format_name, output=tmp_path))
    row = TASKS["countdown"].formats[format_name]({"nums": [3, 5, 40], "target": 42})
    model = checked_model(plan.location)
    (ids,) = prompt_ids_of(model, [row], format_name=plan.format)
    text = model.tokenizer.decode(ids)
    if format_name == "instruct":
        assert text.endswith("</s><assistant>")
    else:
        assert text.endswith("<think>")
        assert not text.endswith("</s>")


def test_a_bos_that_the_prompt_brings_is_not_doubled(model_folder, tmp_path):
    plan = make_plan(Settings(str(model_folder), task="countdown", output=tmp_path))
    model = checked_model(plan.location)
    (ids,) = prompt_ids_of(model, [{"prompt": "<s>1 + 1"}], format_name=plan.format)
    assert ids.count(model.tokenizer.bos_token_id) == 1


# ---- metrics


def test_metrics_of_hand_written_responses_are_the_hand_computed_ones():
    samples = [
        sample_of(0, RIGHT, sample=0),
        sample_of(0, WRONG, sample=1),
        sample_of(1, WRONG, sample=0, nums=(3, 5, 40, 1)),
        sample_of(1, "\n40", sample=1, nums=(3, 5, 40, 1), is_truncated=True),
    ]
    metrics = scores.metrics(samples, task=TASKS["countdown"])
    value = {name: estimate.value for name, estimate in metrics.items()}
    assert (value["pass@1"], value["pass@2"], value["maj@2"]) == (0.25, 0.5, 0.25)
    assert (value["pass@1/3 numbers"], value["pass@1/4 numbers"]) == (0.5, 0.0)
    assert (value["outcome/correct"], value["outcome/truncated"], value["outcome/wrong_numbers"]) == (0.25, 0.25, 0.25)
    assert sum(share for name, share in value.items() if name.startswith("outcome/")) == pytest.approx(1)
    assert value["length/correct"] == len(RIGHT)
    assert value["attempts/mean"] == pytest.approx((2 + 1 + 1 + 0) / 4)
    assert value["verified/share"] == pytest.approx((1 + 0) / 2 / 2)
    assert metrics["pass@1"].n == 2


@pytest.mark.parametrize(
    ("completion", "attempts", "is_verified"),
    [(RIGHT, 2, 1.0), (UNCHECKED, 0, 0.0), (WRONG, 1, 0.0), ("\n", 0, None)],
)
def test_countdowns_behaviours_count_attempts_and_verified_answers(completion, attempts, is_verified):
    behaviours = TASKS["countdown"].behaviours
    response = "<think>" + completion
    assert behaviours["attempts/mean"](response, nums=[3, 5, 40], target=42) == attempts
    measured = behaviours["verified/share"](response, nums=[3, 5, 40], target=42)
    assert measured == is_verified or (is_verified is None and measured != measured)


@pytest.mark.parametrize(
    ("line", "is_verified"),
    [
        ("1 + 2 = 3", 1.0),
        ("So 1+2 = 3.", 1.0),
        ("1 + 2 = 3, no", 0.0),
        ("1 + 2 = 30", 0.0),
        ("1 + 2 = 3 + 1", 0.0),
        ("2 + 1 = 3", 0.0),
    ],
)
def test_an_answer_is_verified_by_a_line_that_works_it_out_to_the_target(line, is_verified):
    response = f"<think>\n{line}\n</think>\n<answer>1 + 2</answer>"
    assert TASKS["countdown"].behaviours["verified/share"](response, nums=[1, 2], target=3) == is_verified


def test_true_values_are_counted_line_by_line():
    share = TASKS["countdown"].behaviours["true_values/share"]
    response = (
        "<think>\n3 + 4 = 7, no\n(3 + 4) * 2 = 7 * 2 = 15, yes\nSo 1 + 1 = 2\n7 / 2 = 3.5, no\n8 / 4 = 2\n</think>"
    )
    assert share(response, nums=[3, 4, 2], target=15) == pytest.approx(2 / 3)
    assert share("<think>\nhm", nums=[1], target=1) != share("<think>\nhm", nums=[1], target=1)


# ---- comparison


def write_evaluation(folder, completions, **settings):
    samples = [sample_of(i, text, target=42, nums=(3, 5, 40 + 0 * i)) for i, text in enumerate(completions)]
    metrics = scores.metrics(samples, task=TASKS["countdown"])
    summary = {"name": folder.name, "temperature": 1.0, "metrics": {k: e.as_dict() for k, e in metrics.items()}}
    scores.write(folder, summary={**summary, **settings}, samples=samples)
    return folder


def test_two_evaluations_of_the_same_problems_compare_in_pairs(tmp_path, capsys):
    base = write_evaluation(tmp_path / "base", [WRONG] * 9 + [RIGHT, RIGHT, WRONG])
    trained = write_evaluation(tmp_path / "final", [RIGHT] * 9 + [WRONG, RIGHT, WRONG])
    assert min(value["low"] for value in scores.read_summary(base)["metrics"].values()) >= 0
    assert command_line.main(["--compare", str(base), str(trained / "summary.json")], task="countdown") == 0
    out = capsys.readouterr().out
    assert "+66.7" in out
    assert "12 problems: 9 better, 1 worse, McNemar's exact p = 0.0215" in out


def test_two_evaluations_of_one_name_are_told_apart_by_their_folders(tmp_path, capsys):
    one, other = (write_evaluation(tmp_path / name / "final", [WRONG, RIGHT]) for name in "ab")
    assert command_line.main(["--compare", str(one), str(other)], task="countdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip().startswith(f"{one}  pass@1 50.0 %")
    assert lines[1].strip().startswith(f"{other}  pass@1 50.0 %")


def test_evaluations_of_different_problems_are_not_compared(tmp_path, capsys):
    base = write_evaluation(tmp_path / "base", [WRONG, RIGHT])
    other = write_evaluation(tmp_path / "final", [WRONG, RIGHT, RIGHT])
    assert command_line.main(["--compare", str(base), str(other)], task="countdown") == 2
    error = capsys.readouterr().err
    assert "not of the same problems: they hold 2 and 3 problems" in error
    assert error.count("\n") == 1


def test_a_folder_that_is_no_evaluation_is_not_compared(tmp_path, capsys):
    assert command_line.main(["--compare", str(tmp_path), str(tmp_path)], task="countdown") == 2
    assert "is not an evaluation: it has no summary.json" in capsys.readouterr().err


def test_of_a_run_in_the_place_of_an_evaluation_the_evaluations_are_named(tmp_path, capsys):
    base = write_evaluation(tmp_path / "evaluation" / "base", [WRONG])
    assert command_line.main(["--compare", str(tmp_path), str(base)], task="countdown") == 2
    assert f"it has no summary.json; there is {base}" in capsys.readouterr().err


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_path", "no/such/folder"], "there is no such folder, and it is no hub id"),
        (["--model_path", __file__], "is a file; give the folder"),
        (["--model_path", str(REPO / "scripts")], "is not a model: it has neither config.json"),
        (["--model_path", "x", "--n", "0"], "--n must be at least 1 and at most 1,000,000, got 0"),
        (["--model_path", "x", "--k", "-1"], "--k must be at least 1 and at most 1,000,000, got -1"),
        (["--model_path", "x", "--temperature", "-0.5"], "--temperature must be 0 (greedy) or more, got -0.5"),
        (["--model_path", "x", "--temperature", "nan"], "--temperature must be 0"),
        (["--model_path", "x", "--max_new_tokens", "0"], "--max_new_tokens must be at least 1"),
        (["--model_path", "x", "--k", "1000000000000"], "--k must be at least 1 and at most 1,000,000"),
        (["--model_path", "x", "--seed", "-1"], "--seed must be at least 0 and at most 4294967295, got -1"),
        (["--model_path", "x", "--name", "a/b"], "--name 'a/b' is a path, and has to be the name of one folder"),
        (["--model_path", "x", "--name", "../b"], "--name '../b' is a path"),
        (["--model_path", "x", "--name", ".."], "--name '..' is no name of a folder"),
        (["--model_path", "x", "--name", " "], "--name ' ' is no name of a folder"),
        (["--model_path", "x", "--name", "a\nb"], "has characters that cannot be printed"),
        (["--model_path", "x", "--name", "題" * 90], "is 270 bytes long, and a folder's name may have 200"),
        (["--model_path", "x", "--k", "4", "--temperature", "0"], "would write the same response 4 times"),
        (["--model_path", "x", "--format", "bsae"], "there is no format 'bsae'; there is base, instruct, r1_prefix"),
        (["--model_path", "x", "--source", "no.parquet"], "there is no data file"),
        ([], "give --model_path, or two evaluations to --compare"),
    ],
)
def test_a_mistake_gets_one_line_and_loads_no_model(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluating, "opened", lambda *_, **__: pytest.fail("a model was loaded"))
    assert command_line.main(arguments, task="countdown") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_mistake_is_answered_without_importing_torch(tmp_path):
    code = (
        "import sys; from tinyzero_trl.evaluation import command_line\n"
        "assert command_line.main(['--model_path', 'no/such/folder'], task='countdown') == 2\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


def test_what_the_model_cannot_take_is_said_before_its_weights_are_read(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluating, "opened", lambda *_, **__: pytest.fail("a model was loaded"))
    assert evaluate(model_folder, tmp_path, "--max_new_tokens", 1000) == 2
    assert "--max_new_tokens may be" in capsys.readouterr().err
    short = make_model(tmp_path / "short", context=64)
    assert evaluate(short, tmp_path) == 2
    assert "takes 64: it does not fit" in (error := capsys.readouterr().err)
    assert re.search(r"the longest prompt, problem [0-5] \(from 0\) of countdown, has \d+ tokens", error)
    assert error.count("\n") == 1


def test_a_tokenizer_that_is_missing_or_cannot_end_or_chat_is_said(model_folder, tmp_path, capsys):
    bare = make_model(tmp_path / "bare", chat_template=None)
    assert evaluate(bare, tmp_path, "--format", "instruct") == 2
    assert "has no chat template; use a plain-text format such as base" in capsys.readouterr().err
    endless = make_model(tmp_path / "endless", eos=None)
    assert evaluate(endless, tmp_path) == 2
    assert "has no eos token, so no completion could end" in capsys.readouterr().err
    for file in bare.glob("tokenizer*"):
        file.unlink()
    assert evaluate(bare, tmp_path) == 2
    assert "has no tokenizer that can be loaded" in capsys.readouterr().err


def test_weights_that_are_cut_off_or_missing_are_said(tmp_path, capsys):
    broken = make_model(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert evaluate(broken, tmp_path) == 2
    assert "broken: model.safetensors, of 1,000 bytes, is cut off or damaged" in capsys.readouterr().err
    weights.unlink()
    assert evaluate(broken, tmp_path) == 2
    assert "broken has no weights: there is no model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "x/samples.parquet"), 8, "disk is full: x/samples.parquet could"),
        (MemoryError(), 5, "lower --batch_size"),
        (KeyboardInterrupt(), 130, "stopped; what was answered is kept"),
    ],
)
def test_what_ends_an_evaluation_has_its_own_exit_code(monkeypatch, capsys, error, code, message):
    def fails(_):
        raise error

    monkeypatch.setattr(command_line, "evaluate_all", fails)
    assert command_line.main(["--model_path", "x"], task="countdown") == code
    assert message in capsys.readouterr().err


def test_a_run_of_another_task_is_not_evaluated_on_this_one(model_folder, tmp_path, capsys):
    run = make_run(tmp_path / "run", model_folder, task="multiplication")
    assert command_line.main(["--model_path", str(run)], task="countdown") == 2
    assert "was trained on multiplication, not on countdown" in capsys.readouterr().err


def test_a_plain_model_without_a_task_is_asked_for_one(model_folder, capsys):
    assert command_line.main(["--model_path", str(model_folder)]) == 2
    assert "give --task (countdown, math, multiplication)" in capsys.readouterr().err


# ---- stopped and gone on with


@pytest.mark.nightly
def test_an_evaluation_killed_at_any_moment_goes_on_and_no_sample_is_drawn_twice(model_folder, tmp_path):
    """A real SIGKILL, three times in a row, each after at least one shard more; then the end. By day: test_evaluation_kills.py."""
    import signal
    import time

    words = ["--model_path", str(model_folder), "--task", "countdown", "--source", "generated", "--n", "40", "--k", "4"]
    words += ["--max_new_tokens", "40", "--batch_size", "8"]
    assert command_line.main([*words, "--output", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "tinyzero_trl.cli", "evaluate", *words, "--output", str(tmp_path / "cut")]
    shards = tmp_path / "cut" / "evaluation" / "base" / "unfinished"
    written: dict[str, int] = {}
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(shards.glob("*.parquet"))) <= len(written):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
        assert now.items() >= written.items()
        written = now
    assert 3 <= len(written) < 20
    assert not (tmp_path / "cut" / "evaluation" / "base" / "summary.json").exists()
    assert command_line.main([*words, "--output", str(tmp_path / "cut")]) == 0
    whole, cut = (tmp_path / name / "evaluation" / "base" for name in ("whole", "cut"))
    assert scores.read_samples(cut) == scores.read_samples(whole)
    assert scores.read_summary(cut)["metrics"] == scores.read_summary(whole)["metrics"]
    assert sorted(path.name for path in cut.iterdir()) == ["samples.parquet", "summary.json"]


def stopped(model_folder, output, monkeypatch, *arguments):
    """An evaluation that loses power while its second shard is half written."""
    from tinyzero_trl.evaluation import unfinished

    keep = unfinished.keep
    with monkeypatch.context() as patch:

        def dies(folder, places, completions):
            if places[0]:
                (folder / "unfinished" / f"{places[0]:08d}.parquet").write_bytes(b"PAR1")
                raise KeyboardInterrupt
            keep(folder, places, completions)

        patch.setattr(unfinished, "keep", dies)
        assert evaluate(model_folder, output, "--batch_size", 2, *arguments) == 130


def test_a_shard_that_cannot_be_read_is_drawn_again(model_folder, tmp_path, monkeypatch, capsys):
    assert evaluate(model_folder, tmp_path / "whole", "--batch_size", 2) == 0
    stopped(model_folder, tmp_path, monkeypatch)
    assert "what was answered is kept" in capsys.readouterr().err
    assert evaluate(model_folder, tmp_path, "--batch_size", 2) == 0
    assert "2 of 6 are answered already" in capsys.readouterr().out
    whole, cut = (scores.read_samples(path / "evaluation" / "base") for path in (tmp_path / "whole", tmp_path))
    assert cut == whole


def test_what_was_stopped_goes_on_with_the_same_settings_alone(model_folder, tmp_path, monkeypatch, capsys):
    stopped(model_folder, tmp_path, monkeypatch)
    assert evaluate(model_folder, tmp_path, "--temperature", 0.5) == 2
    assert "was stopped, with another temperature (1.0, now 0.5)" in capsys.readouterr().err
    assert evaluate(model_folder, tmp_path, "--temperature", 0.5, "--overwrite") == 0
    assert scores.read_summary(tmp_path / "evaluation" / "base")["temperature"] == 0.5


def test_a_complete_evaluation_is_not_made_twice_but_for_other_weights(model_folder, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    assert evaluate(copy, tmp_path) == 0
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "opened", lambda *_, **__: pytest.fail("a model was loaded"))
        assert evaluate(copy, tmp_path) == 0
    assert "is complete; --overwrite makes it anew" in capsys.readouterr().out
    (copy / "model.safetensors").touch()
    assert evaluate(copy, tmp_path) == 0
    assert "is complete" not in capsys.readouterr().out


def test_what_a_kill_behind_the_last_file_left_is_removed_by_the_next_call(model_folder, tmp_path, capsys):
    assert evaluate(model_folder, tmp_path) == 0
    folder = tmp_path / "evaluation" / "base"
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "00000000.parquet").write_bytes(b"PAR1")
    (folder / "run.lock").write_text("process 1")
    assert evaluate(model_folder, tmp_path) == 0
    assert "is complete" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["samples.parquet", "summary.json"]


def test_samples_of_another_length_or_engine_are_not_thrown_away_unasked(model_folder, tmp_path, capsys):
    assert evaluate(model_folder, tmp_path) == 0
    samples = (tmp_path / "evaluation" / "base" / scores.SAMPLES).read_bytes()
    assert evaluate(model_folder, tmp_path, "--max_new_tokens", 13) == 2
    assert "holds an evaluation with another max_new_tokens (12, now 13)" in capsys.readouterr().err
    assert (tmp_path / "evaluation" / "base" / scores.SAMPLES).read_bytes() == samples
    assert evaluate(model_folder, tmp_path, "--max_new_tokens", 13, "--overwrite") == 0


def test_another_source_is_read_without_the_columns_of_the_runs_own(model_folder, tmp_path):
    from tinyzero_trl.evaluation.plan import Settings, make_plan

    run = tmp_path / "run"
    shutil.copytree(model_folder, run / "model")
    data = {"source": "rows.jsonl", "split_rule": "problem", "problem_column": "question", "min_level": 3, "seed": 1}
    manifest.seal(run / "model", step=1)
    (run / "run.yaml").write_text(json.dumps({"task": "math", "format": "base", "data": data}))
    assert make_plan(Settings(str(run / "model"))).data == {k: v for k, v in data.items() if k != "seed"}
    assert make_plan(Settings(str(run / "model"), source="generated")).data == {
        "source": "generated",
        "split_rule": "problem",
    }
    named = make_plan(Settings(str(run / "model"), source="other.parquet", split_rule="tinyzero"))
    assert named.data == {"source": "other.parquet", "split_rule": "tinyzero"}


def test_a_split_rule_is_refused_for_a_benchmark(model_folder, capsys):
    words = ["--model_path", str(model_folder), "--benchmarks", "gsm8k", "--split_rule", "tinyzero"]
    assert command_line.main(words, task="math") == 2
    assert "--split_rule is of the task's own problems" in capsys.readouterr().err


def test_a_small_top_p_is_greedy_and_a_whole_one_changes_nothing(model_folder, tmp_path):
    for name, words in {
        "greedy": ["--temperature", 0],
        "tiny": ["--top_p", 1e-6],
        "all": ["--top_p", 1],
        "plain": [],
    }.items():
        assert evaluate(model_folder, tmp_path, "--name", name, *words) == 0
    text = {
        name: [sample.completion for sample in scores.read_samples(tmp_path / "evaluation" / name)]
        for name in ("greedy", "tiny", "all", "plain")
    }
    assert text["greedy"] == text["tiny"] != text["all"]
    assert text["all"] == text["plain"]
