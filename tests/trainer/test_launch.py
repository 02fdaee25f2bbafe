"""The command line for real: recipes on tiny models, two processes on the CPU, exit codes, signals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from two_processes import GRPO, REPO, REWARDS, SMALL, launch, words_of

from tinyzero_trl import grpo
from tinyzero_trl.config import free_port, list_recipes, program_of
from tinyzero_trl.failures import exit_code_of
from tinyzero_trl.storage import manifest

pytestmark = pytest.mark.slow
REAL_ROWS = REPO.parent / "shared" / "data" / "countdown" / "countdown_dev_2k.jsonl"


@pytest.fixture
def words(tiny_llama: Path, tmp_path: Path) -> list[str]:
    """A run of grpo-tiny on random weights with a reward that they earn."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    return words_of(tmp_path, tiny_llama)


def start_ranks(arguments: list[str], *, num: int, log: Path) -> list[subprocess.Popen[bytes]]:
    """The processes a launcher would start, without the launcher: their own exit codes can be seen."""
    port, ranks = free_port(), []
    for rank in range(num):
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num),
            "LOCAL_WORLD_SIZE": str(num), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        with log.with_suffix(f".{rank}").open("wb") as file:
            command = [sys.executable, str(GRPO), *arguments]
            ranks.append(subprocess.Popen(command, cwd=REPO, env=env, stdout=file, stderr=subprocess.STDOUT))
    return ranks


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Not by "reward": a second step on the same rollouts has none of its own.
    return [entry for entry in entries if "loss" in entry]


@pytest.fixture(scope="module")
def one(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with as many rows a step as two have."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "rewards.py").write_text(REWARDS)
    more = ["trainer.max_steps=3", "trainer.gradient_accumulation_steps=4", f"output_dir={folder / 'run'}"]
    assert grpo.train([*words_of(folder, tiny_llama), *more]) == 0
    return folder / "run"


@pytest.mark.alone
@pytest.mark.parametrize(
    "config", ["ddp", "zero3", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("zero1", "zero2"))]
)
def test_two_processes_train_save_resume_and_earn_what_one_does(
    config: str, launched: Callable[[str], Path], one: Path
) -> None:
    """zero1 and zero2 go on by night: of what they shard, zero3 shards the same and more."""
    folder = launched(config)
    two, words = folder / "plain", words_of(folder, folder / "model")
    (two / "checkpoint-2" / manifest.MANIFEST).unlink()
    done = launch(config, GRPO, *words, "trainer.max_steps=3", f"trainer.resume_from_checkpoint={two}")
    assert "passed over checkpoint-2 was not finished" in done.stdout
    assert [path.name for path in manifest.checkpoints(two)] == ["checkpoint-2", "checkpoint-3"]
    assert all(manifest.why_not_usable(path) is None for path in [*manifest.checkpoints(two), two / "model"])
    assert [entry["step"] for entry in metrics_of(two)] == [1, 2, 3]
    assert pq.read_table(two / "rollouts" / "train-00000003.parquet").num_rows == 32
    for mine, theirs in zip(metrics_of(two), metrics_of(one), strict=True):
        assert mine["reward"] == pytest.approx(theirs["reward"], rel=0.5)


def rollouts_of(folder: Path) -> list[list[dict[str, Any]]]:
    return [pq.read_table(path).to_pylist() for path in sorted((folder / "rollouts").glob("train-*"))]


@pytest.mark.alone
def test_two_processes_are_given_the_completions_that_one_is(launched: Callable[[str], Path], tmp_path: Path) -> None:
    two, single = launched("ddp"), tmp_path / "single"
    alone = ["trainer.per_device_train_batch_size=16", "trainer.max_steps=1", f"output_dir={single}"]
    assert grpo.train([*words_of(two, two / "model"), *alone]) == 0
    for mine, theirs in zip(rollouts_of(two / "one-step"), rollouts_of(single), strict=True):
        for key in ("seed", "prompt", "completion", "reward"):
            assert [row[key] for row in mine] == [row[key] for row in theirs]


@pytest.mark.alone
def test_dynamic_sampling_replay_and_a_curriculum_keep_two_processes_in_step(launched: Callable[[str], Path]) -> None:
    folder = launched("ddp") / "changing"
    entries = metrics_of(folder)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert sum(entry["sampling/groups_replaced"] for entry in entries) > 0
    assert all(len({row["row_index"] for row in shard}) == len(shard) / 4 for shard in rollouts_of(folder))


def all_recipes() -> Iterator[Any]:
    """Every recipe of reinforcement learning; one that differs from an earlier one in its model's size alone is nightly."""
    kinds = set()
    for recipe in (r for r in list_recipes() if program_of(r.name) == "grpo"):
        kind = recipe.task, re.sub(r"-[\d.]+b\b", "", recipe.name)
        name, is_new = f"{recipe.task}/{recipe.name}", kind not in kinds
        yield pytest.param(recipe, id=name, marks=() if is_new else pytest.mark.nightly)
        kinds.add(kind)


@pytest.mark.parametrize("recipe", list(all_recipes()))
def test_every_recipe_trains_two_steps(
    recipe: Any, tiny_llama: Path, tiny_qwen: Callable[[str], Path], tmp_path: Path
) -> None:
    """On tiny models: of one kind of recipe the sizes train alike, and test_recipes.py composes and checks each of them by day."""
    is_tiny = "-tiny" in recipe.name
    model = tiny_llama if is_tiny else tiny_qwen("instruct" if "instruct" in recipe.name else "base")
    # What needs a GPU goes: vLLM, 4-bit weights. All else of the recipe is used as it stands.
    changes = ["model.dtype=float32", "generation.engine=transformers", "trainer.save_steps=2"]
    changes += ["data.num_eval_rows=2", "trainer.eval_steps=2", "trainer.per_device_eval_batch_size=4"]
    if not is_tiny:
        # On a CPU, TRL's head scores every position of every prompt over 151,936 words.
        changes += ["trainer.per_device_train_batch_size=2", "trainer.num_generations=2"]
    if "qlora" in recipe.name:
        changes += ["model.load_in_4bit=false", "model.use_bnb_nested_quant=false"]
    if "lora" in recipe.name:
        changes += ["trainer.optim=adamw_torch_fused"]
    if recipe.name == "grpo-tiny-search":
        # The tiny model's tokens are bytes, and the penalty is taken at tokens that are in the vocabulary.
        changes += [f"data.source={REAL_ROWS}", "data.split_rule=problem", r"kl_tokens='\d'"]
    if not is_tiny:
        if recipe.task == "countdown":
            changes.append(f"data.source={REAL_ROWS}")
        if recipe.task == "math":
            sums = [{"problem": f"What is ${n} + 1$?", "answer": str(n + 1)} for n in range(2000)]
            (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
            changes += [f"data.source={tmp_path / 'sums.jsonl'}", "trainer.steps_per_generation=4"]
    changes += [
        f"model.model_name_or_path={model}",
        f"output_dir={tmp_path / 'run'}",
        "trainer.max_completion_length=16",
    ]
    if recipe.name.startswith("dapo"):
        changes.append("soft_overlong_tokens=2")  # of 16, as 32 are of 256
    assert grpo.train([f"+{recipe.task}={recipe.name}", *SMALL, *changes]) == 0
    assert [entry["step"] for entry in metrics_of(tmp_path / "run")][-1] == 2
    assert manifest.why_not_usable(tmp_path / "run" / "model") is None
    record = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert record["trainer"]["run_name"] == recipe.name
    is_evaluated = record["trainer"]["eval_strategy"] != "no"
    assert is_evaluated or is_tiny
    assert (tmp_path / "run" / "rollouts" / "eval-00000002.parquet").is_file() == is_evaluated
    # The second call continues a finished run: nothing to do, nothing changed (C-18).
    before = contents(tmp_path / "run")
    resumed = [word for word in changes if not word.startswith("output_dir")]
    resumed.append(f"trainer.resume_from_checkpoint={tmp_path / 'run'}")
    assert grpo.train([f"+{recipe.task}={recipe.name}", *SMALL, *resumed]) == 0
    assert contents(tmp_path / "run") == before


def contents(path: Path) -> dict[Path, str]:
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.rglob("*") if file.is_file()}


@pytest.mark.alone
def test_sigterm_to_one_process_stops_all_at_the_same_step_with_143_and_a_way_to_go_on(
    words: list[str], tmp_path: Path
) -> None:
    """T-6."""
    arguments = [*words, "trainer.max_steps=500", "trainer.save_steps=500", f"output_dir={tmp_path / 'run'}"]
    ranks = start_ranks(arguments, num=2, log=tmp_path / "log")
    wait_for(tmp_path / "run" / "rollouts" / "train-00000002.parquet", ranks)
    ranks[1].send_signal(signal.SIGTERM)
    assert [rank.wait(timeout=300) for rank in ranks] == [143, 143], (tmp_path / "log.0").read_text()[-3000:]
    found = manifest.newest_usable(tmp_path / "run")
    assert found.path is not None
    text = (tmp_path / "log.0").read_text()
    assert f"tinyzero resume {tmp_path / 'run'}" in text
    assert f"stopped after step {found.path.name.split('-')[1]}" in text


def test_ctrl_c_exits_with_130_and_the_run_goes_on_from_there(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """T-5, T-9."""
    folder = tmp_path / "run"
    arguments = [*words, "trainer.max_steps=500", "trainer.save_steps=500", f"output_dir={folder}"]
    (process,) = start_ranks(arguments, num=1, log=tmp_path / "log")
    wait_for(folder / "rollouts" / "train-00000002.parquet", [process])
    assert exit_code_of(grpo.train, [*words, f"trainer.resume_from_checkpoint={folder}"]) == 6
    assert "is in use by process" in capfd.readouterr().err
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    step = int(manifest.checkpoints(folder)[-1].name.split("-")[1])
    again = f"tinyzero resume {folder}"
    assert again in (tmp_path / "log.0").read_text()
    command = [sys.executable, "-m", "tinyzero_trl.cli", *again.split()[1:], f"trainer.max_steps={step + 1}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"continuing checkpoint-{step}" in done.stdout
    assert [entry["step"] for entry in metrics_of(folder)] == list(range(1, step + 2))


def test_kill_9_leaves_a_lock_that_the_next_launch_takes_over(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """T-8, T-9."""
    folder = tmp_path / "run"
    (process,) = start_ranks([*words, "trainer.max_steps=500", f"output_dir={folder}"], num=1, log=tmp_path / "log")
    wait_for(folder / "checkpoint-2" / manifest.MANIFEST, [process])
    process.kill()
    process.wait()
    assert (folder / "run.lock").is_file()
    found = manifest.newest_usable(folder)
    assert found.path is not None
    step = int(found.path.name.split("-")[1])
    assert grpo.train([*words, f"trainer.max_steps={step + 1}", f"trainer.resume_from_checkpoint={folder}"]) == 0
    assert f"continuing checkpoint-{step}" in capfd.readouterr().out
    assert not (folder / "run.lock").exists()


def test_a_mistake_is_one_line_on_stderr_and_exit_code_2_on_every_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(grpo.train, ["+countdown=grpo-tiny", "trainer.lerning_rate=1"]) == 2
    printed, error = capfd.readouterr()
    assert error.strip() == (
        "error: command line: there is no key trainer.lerning_rate; did you mean trainer.learning_rate?"
    )
    assert printed == ""
    broken = shutil.copytree(REPO / "src" / "tinyzero_trl" / "tiny", tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 1000)
    assert exit_code_of(grpo.train, ["+countdown=grpo-tiny", f"model.model_name_or_path={broken}"]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: model.model_name_or_path={broken}: model.safetensors, of 1,000 bytes, is cut off")
    assert error.count("\n") == 1
    ranks = start_ranks(["+countdown=grpo-tiny", "trainer.num_generations=7"], num=2, log=tmp_path / "log")
    assert [rank.wait(timeout=300) for rank in ranks] == [2, 2]
    assert "does not hold whole groups of num_generations 7" in (tmp_path / "log.0").read_text()
    assert (tmp_path / "log.1").read_text() == ""


def wait_for(path: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        assert all(process.poll() is None for process in processes), "a process ended early"
        time.sleep(0.1)
