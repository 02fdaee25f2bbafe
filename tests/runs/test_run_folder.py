"""The folder of a run: its name, lock, record, and where a resumed run goes on."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyzero_trl.config import compose
from tinyzero_trl.failures import ConfigError, RunLocked
from tinyzero_trl.models import identity
from tinyzero_trl.runs import folder as run_folder
from tinyzero_trl.runs import record
from tinyzero_trl.runs.resuming import MAY_CHANGE
from tinyzero_trl.storage import manifest
from tinyzero_trl.storage.lock import locked

TINY = "+countdown=grpo-tiny"


def recorded(path: Path, *words: str) -> Path:
    """A run folder with its run.yaml and sealed checkpoints 1 and 2."""
    cfg = compose([TINY, *words])
    path.mkdir(parents=True)
    record.write_record(path, cfg, data={}, seeds={})
    for step in (1, 2):
        (path / f"checkpoint-{step}").mkdir()
        (path / f"checkpoint-{step}" / "weights").write_text("w")
        manifest.seal(path / f"checkpoint-{step}", step=step, world_size=1)
    return path


def test_a_new_run_has_a_folder_of_its_own_named_after_task_and_recipe(tmp_path: Path) -> None:
    folder = run_folder.choose(compose([TINY]), outputs=tmp_path)
    assert folder.path.parent == tmp_path / "countdown"
    assert folder.path.name.startswith("grpo-tiny-20")
    assert folder.resume_from is None


def test_true_continues_the_newest_run_of_the_recipe(tmp_path: Path) -> None:
    for name in ("grpo-tiny-20260101-000000", "grpo-tiny-20260102-000000", "grpo-tiny-long-20260103-000000"):
        recorded(tmp_path / "countdown" / name)
    cfg = compose([TINY, "trainer.resume_from_checkpoint=true"])
    folder = run_folder.choose(cfg, outputs=tmp_path)
    assert folder.resume_from == tmp_path / "countdown" / "grpo-tiny-20260102-000000" / "checkpoint-2"


def test_what_is_passed_over_is_said_with_the_reason(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run")
    (path / "checkpoint-2" / "weights").write_text("v")
    folder = run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}"]))
    assert folder.resume_from == path / "checkpoint-1"
    assert folder.warnings == ("passed over checkpoint-2 has a changed weights (its sha256 differs)",)
    with pytest.raises(ConfigError, match="has a changed weights"):
        run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}/checkpoint-2"]))
    for step in (1, 2):
        (path / f"checkpoint-{step}" / manifest.MANIFEST).unlink()
    folder = run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}"]))
    assert folder.resume_from is None
    assert folder.warnings[-1].endswith("has no usable checkpoint: starting from step 0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trainer.num_generations=8", "trainer.num_generations was 16 and is now 8"),
        ("rewards.format=1", "rewards.format was not set and is now 1.0"),
        ("data.seed=9", "data.seed was 1 and is now 9"),
        ("trainer.top_k=5", "trainer.top_k was 0 and is now 5"),
        ("trainer.adam_epsilon=1", "trainer.adam_epsilon was 1e-08 and is now 1.0"),
        ("model.dtype=bfloat16", "model.dtype was 'float32' and is now 'bfloat16'"),
        ("algorithm=rloo", "algorithm was 'grpo' and is now 'rloo'"),
        ("trainer.learning_rate=1", "trainer.learning_rate was 0.0005 and is now 1.0"),
        ("trainer.beta=0.1", "trainer.beta was 0.0 and is now 0.1"),
        ("replay.num_groups=4", "replay.num_groups was 0 and is now 4"),
    ],
)
def test_a_run_is_not_continued_as_another(tmp_path: Path, change: str, message: str) -> None:
    """C-14."""
    path = recorded(tmp_path / "run", "trainer.num_generations=16")
    words = [TINY, "trainer.num_generations=16", f"trainer.resume_from_checkpoint={path}", change]
    with pytest.raises(ConfigError, match=message):
        run_folder.choose(compose(words))


def test_all_that_was_changed_is_named_in_one_line(tmp_path: Path) -> None:
    """C-14."""
    path = recorded(tmp_path / "run")
    changes = ["trainer.beta=0.1", "rewards.format=0.5", "trainer.logging_steps=7"]
    with pytest.raises(ConfigError) as refused:
        run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}", *changes]))
    assert str(refused.value) == (
        f"cannot continue {path}: rewards.format was not set and is now 0.5; trainer.beta was 0.0 and is now 0.1"
    )


def test_every_key_of_a_run_may_change_or_may_not_and_those_that_may_are_few(tmp_path: Path) -> None:
    """C-14: a key that TRL adds is one that must not change until somebody has thought about it."""
    from tinyzero_trl.config.keys import defaults

    standing = defaults("grpo")
    keys = [f"{section}.{key}" for section, value in standing.items() if isinstance(value, dict) for key in value]
    keys += [key for key, value in standing.items() if not isinstance(value, dict)]
    free = {key for key in keys if MAY_CHANGE.fullmatch(key)}
    assert {key for key in free if key.startswith("model.")} == set()
    assert "trainer.dataloader_drop_last" not in free
    ours = {key for key in free if not key.startswith(("trainer.", "reward_workers."))}
    assert ours == {
        *("output_dir", "give_up_after", "max_generated_tokens", "data.num_eval_rows"),
        *("batching.max_tokens_per_microbatch", "evaluation.temperature", "evaluation.greedy"),
    }
    prefixes = ("trainer.eval_", "trainer.log", "trainer.save_", "trainer.hub_", "trainer.dataloader_", "trainer.vllm_")
    rest = {key.removeprefix("trainer.") for key in free - ours if not key.startswith((*prefixes, "reward_workers."))}
    assert rest == {
        *("max_steps", "num_train_epochs", "resume_from_checkpoint", "run_name", "num_generations_eval", "report_to"),
        *("push_to_hub", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "project", "disable_tqdm"),
        *("skip_memory_metrics", "debug", "do_eval", "per_device_eval_batch_size", "batch_eval_metrics"),
        *("num_completions_to_print", "include_num_input_tokens_seen", "metric_for_best_model", "greater_is_better"),
        *(
            "load_best_model_at_end",
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
            "torch_empty_cache_steps",
        ),
        "ddp_timeout",
    }


@pytest.mark.parametrize(
    "change",
    [
        *("trainer.max_steps=999", "trainer.logging_steps=5", "trainer.save_steps=7", "trainer.eval_steps=3"),
        *("trainer.report_to=[wandb]", "max_generated_tokens=900", "give_up_after=3", "data.num_eval_rows=5"),
        *("trainer.gradient_checkpointing=true", "trainer.hub_token=canary", "reward_workers.num_workers=1"),
    ],
)
def test_what_changes_no_number_may_change(tmp_path: Path, change: str) -> None:
    """C-14."""
    path = recorded(tmp_path / "run")
    cfg = compose([TINY, f"trainer.resume_from_checkpoint={path}", change])
    assert run_folder.choose(cfg).resume_from == path / "checkpoint-2"


def a_model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "notes.md"):
        (folder / name).write_text(name)
    return folder


def test_a_run_is_not_continued_where_its_model_or_tokenizer_became_another(tmp_path: Path) -> None:
    """C-17."""
    model = a_model(tmp_path / "model")
    path = recorded(tmp_path / "run", f"model.model_name_or_path={model}")
    words = [TINY, f"model.model_name_or_path={model}", f"trainer.resume_from_checkpoint={path}"]
    cfg = compose(words)

    def open_it() -> None:
        with run_folder.opened(cfg, num_processes=1, data={}, seeds={}):
            pass

    open_it()
    assert set(yaml.safe_load((path / "run.yaml").read_text())["provenance"]["model"]) == {
        *("config.json", "tokenizer.json", "model.safetensors")
    }
    (model / "notes.md").write_text("no part of the model")
    open_it()
    (model / "tokenizer.json").write_text("another")
    (model / "chat_template.jinja").write_text("added")
    before = (path / "run.yaml").read_bytes()
    with pytest.raises(ConfigError, match=r"changed: chat_template.jinja \(new\), tokenizer.json \(other content\)"):
        open_it()
    assert (path / "run.yaml").read_bytes() == before


def test_a_large_file_of_a_model_is_known_by_its_size_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C-17."""
    model = a_model(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(identity, "WHOLE_BYTES", 2**21)
    first = identity.model_files(str(model))
    for place in (5, -5):
        changed = bytearray(3 * 2**20)
        changed[place] = 1
        weights.write_bytes(changed)
        assert {key for key, value in identity.model_files(str(model)).items() if value != first[key]} == {
            "model.safetensors"
        }
    weights.write_bytes(bytes(3 * 2**20 + 1))
    assert identity.model_files(str(model)) != first


def test_packages_that_changed_since_the_run_began_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C-16."""
    path = recorded(tmp_path / "run")
    cfg = compose([TINY, f"trainer.resume_from_checkpoint={path}"])
    now = record.packages()
    monkeypatch.setattr(run_folder, "packages", lambda: now | {"trl": "9.9", "new": "1"})
    with run_folder.opened(cfg, num_processes=1, data={}, seeds={}) as folder:
        assert folder.warnings == (
            f"the run began with other versions, so its numbers may differ: new absent -> 1, trl {now['trl']} -> 9.9",
        )
    monkeypatch.undo()
    path = recorded(tmp_path / "same")
    cfg = compose([TINY, f"trainer.resume_from_checkpoint={path}"])
    with run_folder.opened(cfg, num_processes=1, data={}, seeds={}) as folder:
        assert folder.warnings == ()


def contents(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def test_continuing_a_finished_run_changes_nothing_and_says_so(tmp_path: Path, capsys: Any) -> None:
    """C-18."""
    path = recorded(tmp_path / "run", "trainer.max_steps=2")
    (path / "model").mkdir()
    manifest.seal(path / "model", step=2, world_size=1)
    before = contents(path)
    words = [TINY, "trainer.max_steps=2"]
    for given in (path, path / "checkpoint-2", path):
        cfg = compose([*words, f"trainer.resume_from_checkpoint={given}"])
        with run_folder.opened(cfg, num_processes=1, data={}, seeds={}) as folder:
            run_folder.announce(folder)
        assert folder.is_finished
        assert capsys.readouterr().out == (
            f"{path} is finished, so nothing was done; raise trainer.max_steps, or what else it ended with, to go on\n"
        )
        assert contents(path) == before
    for more in (
        f"trainer.resume_from_checkpoint={path} trainer.max_steps=3",
        f"trainer.resume_from_checkpoint={path}/checkpoint-1",
        f"trainer.resume_from_checkpoint={path} max_generated_tokens=100",
    ):
        assert not run_folder.choose(compose([*words, *more.split()])).is_finished
    fewer = f"trainer.resume_from_checkpoint={path} trainer.max_steps=1 trainer.num_train_epochs=9"
    assert run_folder.choose(compose([*words, *fewer.split()])).is_finished
    (path / "model" / manifest.MANIFEST).unlink()
    assert not run_folder.choose(compose([*words, f"trainer.resume_from_checkpoint={path}"])).is_finished


def test_a_run_is_not_continued_on_other_rows(tmp_path: Path) -> None:
    """C-14."""
    path = recorded(tmp_path / "run")
    cfg = compose([TINY, f"trainer.resume_from_checkpoint={path}"])
    record.write_record(path, cfg, data={"fingerprint": "a"}, seeds={})
    changed = run_folder.opened(cfg, num_processes=1, data={"fingerprint": "b"}, seeds={})
    with pytest.raises(ConfigError, match="the training rows have changed"), changed:
        pass
    with run_folder.opened(cfg, num_processes=1, data={"fingerprint": "a"}, seeds={}) as folder:
        assert folder.resume_from == path / "checkpoint-2"


def test_a_run_of_two_processes_is_not_continued_by_one(tmp_path: Path) -> None:
    """C-14."""
    path = recorded(tmp_path / "run")
    with pytest.raises(ConfigError, match="written by 1 processes, this run has 2"):
        run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}"]), num_processes=2)


def test_what_a_killed_process_was_writing_is_removed_as_a_run_goes_on(tmp_path: Path) -> None:
    path = recorded(tmp_path / "run")
    (path / "rollouts").mkdir()
    parts = [
        path / ".run.yaml.0123456789abcdef.part",
        path / "rollouts" / ".train-00000001.parquet.0123456789abcdef.part",
    ]
    for part in parts:
        part.touch()
    cfg = compose([TINY, f"trainer.resume_from_checkpoint={path}"])
    with run_folder.opened(cfg, num_processes=1, data={}, seeds={}):
        assert not any(part.exists() for part in parts)


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tinyzero_trl.storage.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdin
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLocked, match=f"in use by process {holder.pid} on") as refused, locked(tmp_path):
        pass
    assert refused.value.exit_code == 6
    holder.kill()
    holder.wait()
    assert (tmp_path / "run.lock").is_file()
    with locked(tmp_path):
        pass
    assert not (tmp_path / "run.lock").exists()


def test_the_record_says_where_a_run_comes_from_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["grpo.py", TINY, "trainer.hub_token=canary-1"])
    cfg = compose([TINY, "trainer.hub_token=canary-1"])
    record.write_record(tmp_path, cfg, data={"source": "generated", "fingerprint": "f"}, seeds={"trainer": 42})
    text = (tmp_path / "run.yaml").read_text()
    assert "canary" not in text
    written: dict[str, Any] = yaml.safe_load(text)
    assert written["trainer"]["num_generations"] == cfg.trainer.num_generations
    origin = written["provenance"]
    assert {"git_commit", "git_dirty", "command", "python", "packages", "hardware", "data", "seeds", "started"} <= set(
        origin
    )
    assert origin["packages"]["trl"] == "1.16.0"
    assert set(origin["hardware"]) >= {"cpu", "cores", "gpus"}
    record.write_record(tmp_path, cfg, data={}, seeds={})
    again = yaml.safe_load((tmp_path / "run.yaml").read_text())["provenance"]
    assert [item["started"] for item in again["earlier"]] == [origin["started"]]


def test_metrics_that_a_resumed_run_writes_again_are_dropped(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "seconds": 2.0 * step}) for step in range(1, 6)]
    summary = json.dumps({"step": 3, "seconds": 6.5, "train_runtime": 6.5})  # an attempt was stopped after step 3
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines[:3], summary, *lines[3:]]) + '\n{"step": 6, "sec')
    assert record.cut_metrics(tmp_path, step=3) == 6.0
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:3]
    assert record.cut_metrics(tmp_path / "nowhere", step=3) == 0.0


def test_a_run_that_begins_anew_keeps_no_evaluation_from_before_its_first_step(tmp_path: Path) -> None:
    """Stopped before its first checkpoint, it evaluates once more; a second line of step 0 would count twice."""
    cfg = compose([TINY, f"trainer.resume_from_checkpoint={tmp_path}"])
    record.write_record(tmp_path, cfg, data={}, seeds={})
    before = json.dumps({"step": 0, "seconds": 3.0, "eval_accuracy": 0.2}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(before)
    with run_folder.opened(cfg, num_processes=1, data={}, seeds={}) as folder:
        assert folder.resume_from is None
        assert folder.seconds_before == 0.0
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    path = recorded(tmp_path / "run")
    (path / "metrics.jsonl").write_text(before)
    cfg = compose([TINY, f"trainer.resume_from_checkpoint={path}"])
    with run_folder.opened(cfg, num_processes=1, data={}, seeds={}):
        assert (path / "metrics.jsonl").read_text() == before


def test_a_manifest_names_every_file_with_its_own_hash(tmp_path: Path) -> None:
    import hashlib

    for index in range(40):  # more than are hashed side by side
        (tmp_path / f"part-{index}").write_bytes(bytes([index]) * (1000 + index))
    manifest.seal(tmp_path, step=1)
    files = json.loads((tmp_path / manifest.MANIFEST).read_text())["files"]
    assert list(files) == sorted(f"part-{index}" for index in range(40))
    assert all(files[n]["sha256"] == hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in files)
    assert manifest.why_not_usable(tmp_path) is None


def test_the_fingerprint_of_rows_is_that_of_their_content() -> None:
    from datasets import Dataset

    rows = [{"nums": [1, 2, 3], "target": n, "prompt": "p"} for n in range(5)]
    first = record.fingerprint(Dataset.from_list(rows), ("nums", "target"))
    assert first == record.fingerprint(Dataset.from_list([{**row, "prompt": "q"} for row in rows]), ("target", "nums"))
    rows[3]["target"] = 9
    assert first != record.fingerprint(Dataset.from_list(rows), ("nums", "target"))


def test_a_machine_without_a_temporary_folder_is_told_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match=r"No usable temporary directory found in .*: set TMPDIR to a folder"):
        run_folder.check_place(compose([TINY]))
