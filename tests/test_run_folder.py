"""The folder of a run: its name, lock, record, and where a resumed run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tinyzero_trl import manifest, record, run_folder
from tinyzero_trl.config import compose
from tinyzero_trl.failures import ConfigError, RunLocked
from tinyzero_trl.lock import locked

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
    assert folder.notes == ("passed over checkpoint-2 has a changed weights (its sha256 differs)",)
    with pytest.raises(ConfigError, match="has a changed weights"):
        run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}/checkpoint-2"]))
    for step in (1, 2):
        (path / f"checkpoint-{step}" / manifest.MANIFEST).unlink()
    folder = run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}"]))
    assert folder.resume_from is None
    assert folder.notes[-1].endswith("has no usable checkpoint: starting from step 0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trainer.num_generations=8", "trainer.num_generations was 16 and is now 8"),
        ("rewards.format=1", "rewards was"),
        ("data.seed=9", "data was"),
        ("trainer.learning_rate=1", "trainer.learning_rate was 0.0005 and is now 1.0"),
        ("trainer.beta=0.1", "trainer.beta was 0.0 and is now 0.1"),
        ("replay.num_groups=4", "replay was"),
    ],
)
def test_a_run_is_not_continued_as_another(tmp_path: Path, change: str, message: str) -> None:
    path = recorded(tmp_path / "run", "trainer.num_generations=16")
    words = [TINY, "trainer.num_generations=16", f"trainer.resume_from_checkpoint={path}", change]
    with pytest.raises(ConfigError, match=message):
        run_folder.choose(compose(words))
    assert run_folder.choose(compose([*words[:3], "trainer.max_steps=999"])).resume_from


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
    path = recorded(tmp_path / "run")
    with pytest.raises(ConfigError, match="written by 1 processes, this run has 2"):
        run_folder.choose(compose([TINY, f"trainer.resume_from_checkpoint={path}"]), num_processes=2)


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tinyzero_trl.lock import locked\n"
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
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "sec')
    assert record.cut_metrics(tmp_path, step=3) == 6.0
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:3]
    assert record.cut_metrics(tmp_path / "nowhere", step=3) == 0.0


def test_the_fingerprint_of_rows_is_that_of_their_content() -> None:
    from datasets import Dataset

    rows = [{"nums": [1, 2, 3], "target": n, "prompt": "p"} for n in range(5)]
    first = record.fingerprint(Dataset.from_list(rows), ("nums", "target"))
    assert first == record.fingerprint(Dataset.from_list([{**row, "prompt": "q"} for row in rows]), ("target", "nums"))
    rows[3]["target"] = 9
    assert first != record.fingerprint(Dataset.from_list(rows), ("nums", "target"))
