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
        (["rewards.equatoin=1"], "no reward of task countdown 'equatoin'; there is equation, exploration, format, graded"),
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
        (["kl_tokens=' = .*'"], "kl_tokens=' = .*' says where the KL penalty is taken, and trainer.beta=0 takes none"),
        (["trainer.beta=0.1", "kl_tokens='('"], "kl_tokens='(' is no regular expression: missing )"),
        (["trainer.beta=0.1", "kl_tokens=nowhere"], "kl_tokens='nowhere' matches the whole text of none of the 262 tokens of"),
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
        (["trainer.max_steps=-5"], "trainer.max_steps must be at least 1, or -1 where trainer.num_train_epochs decides; got -5"),
        (["trainer.seed=-1"], "trainer.seed must be at least 0 and at most 4294967295, got -1"),
        (["trainer.seed=4294967296"], "trainer.seed must be at least 0 and at most 4294967295, got 4294967296"),
        (["++trainer.data_seed=-1"], "trainer.data_seed must be at least 0"),
        (["data.seed=-1"], "data.seed must be at least 0 and at most 4294967295, got -1"),
        (["data.seed=x"], "data.seed must be a whole number, got 'x'"),
        (["data.num_train_rows=0"], "data.num_train_rows must be at least 1"),
        (["data.num_train_rows=2.5"], "data.num_train_rows must be a whole number, got 2.5"),
        (["data.num_eval_rows=-1"], "data.num_eval_rows must be at least 0"),
        (["model.dtype=float8"], "model.dtype: there is no 'float8'; there is auto, float32, bfloat16, float16"),
        (["model.dtype=flaot32"], "did you mean float32?"),
        (["trainer.report_to=wandbb"], "trainer.report_to: there is no 'wandbb'; there is none, all, wandb"),
        (["trainer.report_to=[tensorboard,neptune]"], "which is not installed; pip install "),
        (["batching.share_prompts=false", "model.attn_implementation=flashattention"], "model.attn_implementation=flashattention: there is no 'flashattention'; there is eager"),
        (["batching.share_prompts=false", "model.attn_implementation=flash_attention_2"], "needs flash_attn: pip install flash-attn"),
        (["batching.share_prompts=false", "model.attn_implementation=kernels-community/flash-attn"], "needs kernels: pip install kernels"),
        (["trainer.lr_scheduler_kwargs={foo: 1}"], "trainer.lr_scheduler_kwargs={'foo': 1} with trainer.lr_scheduler_type=linear: "),
        (["trainer.lr_scheduler_type=warmup_stable_decay"], "with trainer.lr_scheduler_type=warmup_stable_decay: "),
        (["trainer.lr_scheduler_type=cosine", "trainer.lr_scheduler_kwargs={num_cycles: x}"], "with trainer.lr_scheduler_type=cosine: "),
        (["trainer.lr_scheduler_kwargs=xx"], "trainer.lr_scheduler_kwargs must be a mapping, {key: value}, got 'xx'"),
        (["trainer.accelerator_config=xx"], "trainer: [Errno 2] No such file or directory: 'xx'"),
        (["generation.server=http://x:1"], "generation.server=http://x:1 is about a server, and generation.engine is transformers"),
        (["generation.seconds_per_call=inf"], "generation.seconds_per_call must be more than 0, and finite; got inf"),
        (["trainer.optim=adam"], "trainer: adam is not a valid OptimizerNames"),
        (["trainer.optim=galore_adamw"], "trainer.optim=galore_adamw: "),
        (["trainer.optim_args=foo"], "trainer.optim_args=foo"),
        (["trainer.optim_args=foo=1"], "trainer.optim_args: foo=1: trainer.optim=adamw_torch_fused reads no such argument"),
        (["trainer.optim=sgd", "trainer.optim_args=momentum=x"], "trainer.optim=sgd trainer.optim_args=momentum=x: could not convert"),
        (["model.lora_r=0"], "model.lora_r must be at least 1, got 0"),
        (["model.lora_r=-4"], "model.lora_r must be at least 1, got -4"),
        (["model.lora_alpha=0"], "model.lora_alpha must be more than 0, got 0"),
        (["model.lora_dropout=1"], "model.lora_dropout must be below 1, got 1"),
        (["model.lora_dropout=nan"], "model.lora_dropout must be at least 0 and at most 1, got nan"),
        (["trainer.dataloader_num_workers=-1"], "trainer.dataloader_num_workers must be at least 0 and at most 1024, got -1"),
        (["trainer.dataloader_multiprocessing_context=xx"], "there is no 'xx'; there is fork, spawn, forkserver"),
        (["trainer.per_device_train_batch_size=0"], "trainer.per_device_train_batch_size must be at least 1, got 0"),
        (["trainer.per_device_train_batch_size=-8"], "must be at least 1, got -8"),
        (["trainer.gradient_accumulation_steps=0"], "trainer.gradient_accumulation_steps must be at least 1"),
        (["trainer.temperature=nan"], "trainer.temperature must be more than 0, got nan"),
        (["trainer.temperature=inf"], "trainer.temperature must be more than 0, got inf"),
        (["trainer.top_p=0"], "trainer.top_p must be more than 0 and at most 1, got 0"),
        (["trainer.warmup_steps=-1"], "trainer.warmup_steps must be at least 0, got -1"),
        (["trainer.save_steps=0"], "trainer.save_steps must be more than 0"),
        (["trainer.save_steps=2.5"], "trainer.save_steps must be a whole number of steps, or a share below 1; got 2.5"),
        (["trainer.eval_steps=-1"], "trainer.eval_steps must be more than 0, got -1"),
        (["trainer.logging_steps=0"], "trainer.logging_steps must be more than 0"),
        (["trainer.num_generations=0"], "trainer.num_generations must be at least 2, got 0"),
        (["trainer.max_completion_length=0"], "trainer.max_completion_length must be at least 1, got 0"),
        (["trainer.beta=nan"], "trainer.beta must be at least 0, got nan"),
        (["trainer.epsilon=inf"], "trainer.epsilon must be more than 0, got inf"),
        (["trainer.delta=nan"], "trainer.delta must be a finite number, got nan"),
        (["trainer.entropy_target=inf"], "trainer.entropy_target must be a finite number, got inf"),
        (["trainer.adam_beta1=1"], "trainer.adam_beta1 must be below 1, got 1"),
        (["trainer.num_train_epochs=nan"], "trainer.num_train_epochs must be at least 0, got nan"),
        (["trainer.metric_for_best_model=acuracy"], "evaluation gives no 'acuracy'; it gives accuracy, "),
        (["trainer.metric_for_best_model=eval_greedy_accuracy"], "evaluation gives no 'greedy_accuracy'"),
        (["trainer.metric_for_best_model=rewards/format/mean"], "evaluation gives no 'rewards/format/mean'"),
        (["trainer.eval_strategy=steps", "data.num_eval_rows=0"], "data.num_eval_rows is 0"),
        (["trainer.eval_strategy=no"], "eval_on_start=true needs an evaluation"),
        (["trainer.generation_batch_size=16", "trainer.steps_per_generation=2"], "say the same thing twice"),
        (["trainer.lr_scheduler_type=zigzag"], "trainer: zigzag is not a valid SchedulerType"),
        (["data.num_train_rows=3"], "3 train rows are fewer than one generation batch, which takes 4 prompts"),
        (["data.max_numbers=many"], "max_numbers must be a whole number, got 'many'"),
        (["data.min_target=1.5"], "min_target must be a whole number, got 1.5"),
        (["data.min_number=null"], "min_number must be a whole number, got None"),
        (["data.source=nowhere.jsonl"], "nowhere.jsonl"),
        (["model.model_name_or_path=./nowhere"], "model.model_name_or_path=./nowhere: there is no such folder, and it is no hub id"),
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


FILES: dict[str, tuple[bytes, str]] = {
    "zero.py": (b"x = 1\n\ny = x / 0\n", "ZeroDivisionError: division by zero (line 3)"),
    "key.py": (b"{}['x']\n", "KeyError: 'x' (line 1)"),
    "syntax.py": (b"def f(:\n", "SyntaxError"),
    "missing.py": (b"import nowhere_to_be_found\n", "No module named 'nowhere_to_be_found'"),
    "leaves.py": (b"raise SystemExit(3)\n", "SystemExit: 3 (line 1)"),
    "asserts.py": (b"assert False\n", "AssertionError (line 1)"),
    "deep.py": (b"def f(): f()\nf()\n", "RecursionError"),
    "lines.py": (b"raise RuntimeError('a\\nb')\n", "RuntimeError: a (line 1)"),
    "binary.py": (bytes(range(256)), "binary.py cannot be imported"),
    "latin.py": ("# é\nx = 'é'\n".encode("latin-1"), "latin.py cannot be imported"),
}


@pytest.mark.parametrize("key", ["rewards.{}:f=1", "task={}:f", "format={}:f"])
def test_a_file_that_raises_at_import_is_one_line_with_the_reason(
    refuse: Callable[..., str], tmp_path: Path, key: str
) -> None:
    (tmp_path / "folder.py").mkdir()
    assert "folder.py is a folder" in refuse(key.format("folder.py"))
    for name, (content, message) in FILES.items():
        (tmp_path / name).write_bytes(content)
        assert message in refuse(key.format(name)), name


def test_a_file_whose_thing_is_of_another_kind_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "kinds file.py").write_text(
        "x = 3\n"
        "class Reward:\n    def __call__(self, response):\n        return 1.0\n"
        "async def worded(row):\n    return {}\n"
        "def raising(row):\n    return {'prompt': row['nothing'], 'prefill': ''}\n"
        "def listed(row):\n    return []\n"
        "def stateful(response, trainer_state):\n    return 1.0\n"
    )
    assert "reward kinds file.py:x is a int, and a reward is a function" in refuse("rewards.kinds file.py:x=1")
    assert "reward kinds file.py:Reward is a class" in refuse("rewards.kinds file.py:Reward=1")
    assert "reads trainer_state, which TRL passes" in refuse("rewards.kinds file.py:stateful=1")
    assert "task 'kinds file.py:x' is a int" in refuse("task=kinds file.py:x")
    assert "format 3 is a int; a format is a function" in refuse("format=kinds file.py:x")
    assert "format worded is async" in refuse("format=kinds file.py:worded")
    assert "format raising raised KeyError: 'nothing' on the row {" in refuse("format=kinds file.py:raising")
    assert "format listed must return a dict" in refuse("format=kinds file.py:listed")


def test_a_task_whose_load_raises_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from dataclasses import replace\n"
        "from tinyzero_trl.tasks.countdown import TASK as COUNTDOWN\n"
        "def load(*, split, source, split_rule, num_rows, seed, min_numbers=3, max_numbers=3):\n    return 1 / 0\n"
        "def other(*, split, source, split_rule, num_rows, seed, min_numbers=3, max_numbers=3):\n    return [1]\n"
        "TASK, OTHER = replace(COUNTDOWN, load=load), replace(COUNTDOWN, load=other)\n"
    )
    assert "load of task countdown raised ZeroDivisionError: division by zero" in refuse("task=own.py:TASK")
    assert "must return a datasets.Dataset, it returned a list" in refuse("task=own.py:OTHER")


def test_a_reward_written_for_trl_is_not_for_workers_and_its_columns_have_to_be_there(
    refuse: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "theirs.py").write_text(
        "def short(prompts, completions, **kwargs):\n    return [1.0] * len(completions)\n"
        "def hinted(completions, hint, **kwargs):\n    return [1.0] * len(completions)\n"
    )
    line = refuse("rewards.theirs.py:short=1", "reward_workers.rewards=[theirs.py:short]")
    assert "takes whole batches, as TRL calls it, and is computed in the trainer" in line
    assert "train rows have no column 'hint', which theirs.py:hinted reads" in refuse("rewards.theirs.py:hinted=1")


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
    from tinyzero_trl.config import compose
    from tinyzero_trl.models.policy import checked_start

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = checked_start(compose([TINY, f"model.model_name_or_path={folder}"])).tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token
    assert tokenizer.padding_side == "left"


def test_a_folder_that_is_no_model_is_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is not a model: it has neither config.json nor" in refuse(f"model.model_name_or_path={tmp_path / 'empty'}")


@pytest.mark.parametrize(
    "sharding", [{"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {"ACCELERATE_USE_FSDP": "true"}], ids=["zero3", "fsdp"]
)
def test_ppo_is_refused_where_weights_are_shared_out(
    refuse: Callable[..., str], sharding: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sharding.items():
        monkeypatch.setenv(name, value)
    assert "use one process, ddp, zero1 or zero2" in refuse("algorithm=ppo")
