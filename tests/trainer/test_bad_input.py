"""A person's mistakes: one clear line each, before the model loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tinyzero_trl import grpo
from tinyzero_trl.failures import ConfigError

TINY = "+countdown=grpo-tiny"
SMALL = (
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=8",
    "trainer.gradient_accumulation_steps=2",
    "trainer.num_generations=4",
    "trainer.max_completion_length=16",
    "trainer.save_steps=1",
    "data.num_train_rows=50",
)
ROWS = [{"nums": [n, n + 1, n + 2], "target": 2 * n + 1} for n in range(10, 40)]


@pytest.fixture
def refuse(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The line with which a run is refused; fails where it is not, or where the model begins to load."""

    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was about to load")

    monkeypatch.setattr("tinyzero_trl.trainer.TinyZeroTrainer", load)
    monkeypatch.chdir(tmp_path)

    def line(*words: str, recipe: str = TINY) -> str:
        given = {word.partition("=")[0] for word in words}
        fixed = [f"model.model_name_or_path={tiny_llama}", *SMALL]
        with pytest.raises(ConfigError) as error:
            grpo.train([recipe, *(word for word in fixed if word.partition("=")[0] not in given), *words])
        assert error.value.exit_code == 2
        assert "\n" not in str(error.value)
        return str(error.value)

    return line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=countdwn"], "no task 'countdwn'; there is countdown, math, multiplication"),
        (["task=nowhere.py:TASK"], "nowhere.py"),
        (["format=bse"], "no format of task countdown 'bse'; there is base, instruct, r1_prefix"),
        (["rewards.equatoin=1"], "no reward of task countdown 'equatoin'; there is equation, format, graded"),
        (["rewards.equation=0"], "rewards need finite weights, one of them not 0"),
        (["data.min_nmber=3"], "no key data.min_nmber; task countdown has"),
        (["algorithm=gppo"], "no algorithm 'gppo'; there is grpo"),
        (["critic.lam=0.9"], "critic.lam: the critic is for algorithm: ppo, and this is grpo"),
        (["algorithm=ppo", "critic.lam=1.1"], "critic.lam must be at least 0 and at most 1, got 1.1"),
        (["algorithm=ppo", "critic.learning_rate=0"], "critic.learning_rate must be more than 0, got 0"),
        (["trainer.loss_type=grppo"], "no 'grppo'; there is grpo, dr_grpo"),
        (["trainer.num_generations=5"], "does not hold whole groups of num_generations 5"),
        (["trainer.num_generations=1"], "trainer.num_generations must be at least 2, got 1"),
        (["trainer.temperature=0"], "trainer.temperature must be more than 0, got 0"),
        (["trainer.learning_rate=-1"], "trainer.learning_rate must be more than 0, got -1"),
        (["trainer.learning_rate=nan"], "trainer.learning_rate must be more than 0"),
        (["trainer.beta=-0.1"], "trainer.beta must be at least 0, got -0.1"),
        (["trainer.top_p=1.5"], "trainer.top_p must be more than 0 and at most 1"),
        (["trainer.top_p=0.9"], "trainer.top_p=0.9: without vLLM, completions are drawn from the whole distribution"),
        (["generation.engine=colocate", "trainer.top_p=0.9"], "trainer.top_p=0.9 with vLLM makes importance ratios vanish"),
        (
            ["generation.engine=server", "++trainer.generation_kwargs={seed:1}"],
            "trainer.generation_kwargs.seed is not what the loss is computed with; set trainer.seed",
        ),
        (["trainer.scale_rewards=group"], "dr_grpo is Dr. GRPO only with trainer.scale_rewards=none"),
        (["trainer.sync_ref_model=true"], "no reference model to synchronise"),
        (["trainer.remove_unused_columns=true"], "removes the columns rewards read"),
        (["trainer.max_steps=0"], "the run would do nothing"),
        (["trainer.eval_strategy=steps", "data.num_eval_rows=0"], "data.num_eval_rows is 0"),
        (["trainer.eval_strategy=no"], "eval_on_start=true needs an evaluation"),
        (["trainer.generation_batch_size=16", "trainer.steps_per_generation=2"], "say the same thing twice"),
        (["trainer.lr_scheduler_type=zigzag"], "trainer: zigzag is not a valid SchedulerType"),
        (["data.num_train_rows=3"], "3 train rows are fewer than one generation batch, which takes 4 prompts"),
        (["data.source=nowhere.jsonl"], "nowhere.jsonl"),
        (["model.model_name_or_path=./nowhere"], "model.model_name_or_path: there is no folder ./nowhere"),
        (["trainer.resume_from_checkpoint=true"], "nothing to resume: outputs/countdown has no run of grpo-tiny"),
        (["trainer.resume_from_checkpoint=nowhere"], "nowhere is not a folder"),
        (["trainer.max_completion_length=2000"], "50 of 50 train prompts do not fit: row "),
    ],
)  # fmt: skip
def test_a_mistake_in_the_recipe_is_one_line_before_the_model_loads(
    refuse: Callable[..., str], words: list[str], message: str
) -> None:
    assert message in refuse(*words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "rows.jsonl"),
        ('{"nums": [1, 2', "rows.jsonl"),
        ('{"numbers": [1, 2, 3], "target": 6}\n', "nums"),
        ('{"nums": [1, 2, 3]}\n', "target"),
        (json.dumps(ROWS[0]) + '\n{"nums": [1, 2, "three"], "target": 6}\n', "three"),
        (json.dumps(ROWS[0]) + '\n{"nums": [1, 2, 3], "target": null}\n', "target"),
    ],
)
def test_a_mistake_in_the_data_names_file_or_row(
    refuse: Callable[..., str], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    assert message in refuse("data.source=rows.jsonl")


def test_a_reward_that_reads_a_column_the_rows_lack_is_named(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def hinted(response, *, hint):\n    return 1.0\n")
    line = refuse("rewards.mine.py:hinted=1.0")
    assert "train rows have no column 'hint', which mine.py:hinted reads; they have nums, target" in line
    assert "mine.py has no other; it has hinted" in refuse("rewards.mine.py:other=1.0")


def test_a_folder_of_another_run_is_never_written_to(refuse: Callable[..., str], tmp_path: Path) -> None:
    """T-10."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    assert "is not empty and a run never overwrites another" in refuse("output_dir=full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos_token": None}, "has no eos token"),
        ({"chat_template": None}, "has no chat template; use a plain-text format such as base"),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_refused(
    refuse: Callable[..., str], tiny_llama: Path, tmp_path: Path, change: dict[str, None], message: str
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k not in change}))
    if "chat_template" in change:
        (folder / "chat_template.jinja").unlink()
    assert message in refuse(f"model.model_name_or_path={folder}", "format=instruct")


def test_a_tokenizer_without_pad_pads_with_eos(tiny_llama: Path, tmp_path: Path) -> None:
    from tinyzero_trl.checks import tokenizer_of
    from tinyzero_trl.config import compose

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tokenizer_of(compose([TINY, f"model.model_name_or_path={folder}"]))
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer.padding_side == "left"


def test_a_folder_that_is_no_model_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is not a model folder (it has no config.json)" in refuse(f"model.model_name_or_path={tmp_path / 'empty'}")


@pytest.mark.parametrize(
    "sharding", [{"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {"ACCELERATE_USE_FSDP": "true"}], ids=["zero3", "fsdp"]
)
def test_ppo_is_refused_where_weights_are_shared_out(
    refuse: Callable[..., str], sharding: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sharding.items():
        monkeypatch.setenv(name, value)
    assert "use one process, ddp, zero1 or zero2" in refuse("algorithm=ppo")
