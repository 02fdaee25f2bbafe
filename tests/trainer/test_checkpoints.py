"""A checkpoint is whole or it does not count."""

from __future__ import annotations

import errno
import json
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tinyzero_trl.failures import DiskFull, NumericFailure
from tinyzero_trl.storage import manifest
from tinyzero_trl.trainer import TinyZeroTrainer


@pytest.fixture
def saved(build: Any) -> Path:
    trainer = build(TinyZeroTrainer, max_steps=3, save_strategy="steps", save_steps=1)
    trainer.train()
    return Path(trainer.args.output_dir)


def test_a_checkpoint_is_sealed_with_the_size_and_hash_of_each_file(saved: Path) -> None:
    content = json.loads((saved / "checkpoint-3" / "MANIFEST.json").read_text())
    assert (content["step"], content["world_size"]) == (3, 1)
    names = {path.name for path in (saved / "checkpoint-3").iterdir()} - {"MANIFEST.json"}
    assert set(content["files"]) == names
    assert "training_args.bin" not in names
    assert manifest.why_not_usable(saved / "checkpoint-3") is None


def test_every_flipped_bit_and_every_missing_or_cut_file_is_found(saved: Path) -> None:
    """C-2, C-3, C-4, C-5, C-6: every file cut to nothing, half and all but a byte, gone, and with bits flipped."""
    folder, dice = saved / "checkpoint-3", random.Random(0)
    for name in json.loads((folder / "MANIFEST.json").read_text())["files"]:
        whole = (folder / name).read_bytes()
        flipped = [bytearray(whole) for _ in range(20)]
        for content in flipped:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        for broken in (b"", whole[: len(whole) // 2], whole[:-1], *flipped):
            (folder / name).write_bytes(broken)
            assert name in (manifest.why_not_usable(folder) or "")
        (folder / name).unlink()
        assert manifest.why_not_usable(folder) == f"lacks {name}"
        (folder / name).write_bytes(whole)
    assert manifest.why_not_usable(folder) is None
    (folder / "MANIFEST.json").write_text('{"files": ')
    assert manifest.why_not_usable(folder) == "has a damaged manifest (MANIFEST.json is not JSON)"


def test_the_newest_usable_checkpoint_is_found_and_the_others_are_passed_over_with_the_reason(saved: Path) -> None:
    """C-1, C-2, C-3."""
    (saved / "checkpoint-30").mkdir()
    (saved / "checkpoint-3" / "optimizer.pt").unlink()
    found = manifest.newest_usable(saved)
    assert found.path == saved / "checkpoint-2"
    assert found.passed_over == (
        "checkpoint-30 was not finished (it has no manifest)",
        "checkpoint-3 lacks optimizer.pt",
    )


def test_rotation_keeps_two_sealed_checkpoints_at_least_and_counts_no_unfinished_one(build: Any) -> None:
    """C-8."""
    trainer = build(TinyZeroTrainer, max_steps=5, save_strategy="steps", save_steps=1, save_total_limit=1)
    folder = Path(trainer.args.output_dir)
    (folder / "checkpoint-99").mkdir(parents=True)
    trainer.train()
    assert [path.name for path in manifest.checkpoints(folder)] == ["checkpoint-4", "checkpoint-5", "checkpoint-99"]


def test_rotation_keeps_the_checkpoint_of_the_best_held_out_accuracy(build: Any) -> None:
    class Evaluated(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            accuracy = {1: 0.1, 2: 0.5, 5: 0.5}.get(state.global_step, 0.3)
            state.log_history.append({"step": state.global_step, "eval_accuracy": accuracy})

    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "callbacks": [Evaluated()]}
    trainer = build(TinyZeroTrainer, max_steps=5, **settings)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in manifest.checkpoints(folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert json.loads((folder / "best.json").read_text()) == {"checkpoint": "checkpoint-2", "eval_accuracy": 0.5}
    assert not (folder / manifest.UNFINISHED).exists()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:664]")],
)
def test_a_full_disk_leaves_the_last_good_checkpoint_and_nothing_half_written(build: Any, error: Exception) -> None:
    trainer = build(TinyZeroTrainer, max_steps=3, save_strategy="steps", save_steps=1)
    save = trainer._save_optimizer_and_scheduler

    def fail_at_two(output_dir: str) -> None:
        if output_dir.endswith("-2"):
            (Path(output_dir) / "optimizer.pt").write_bytes(b"half")
            raise error
        save(output_dir)

    trainer._save_optimizer_and_scheduler = fail_at_two
    with pytest.raises(DiskFull, match="last good checkpoint is .*checkpoint-1") as stop:
        trainer.train()
    assert stop.value.exit_code == 8
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in manifest.checkpoints(folder)] == ["checkpoint-1"]
    assert manifest.newest_usable(folder).path == folder / "checkpoint-1"


@pytest.mark.parametrize("name", ["trainer_state.json", "model.safetensors", "optimizer.pt"])
def test_what_the_system_itself_says_of_a_file_that_grows_too_large_is_understood(name: str, build: Any) -> None:
    """Files are written by Python, by safetensors and by torch, and each of them says it in its own words."""
    trainer = build(TinyZeroTrainer, max_steps=3, save_strategy="steps", save_steps=1)
    save, limits = trainer._save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments: Any) -> None:
        if trainer.state.global_step == 2:
            size = (Path(trainer.args.output_dir) / "checkpoint-1" / name).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
        try:
            save(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    trainer._save_checkpoint = limited
    with pytest.raises(DiskFull, match="last good checkpoint is .*checkpoint-1") as stop:
        trainer.train()
    assert stop.value.exit_code == 8
    assert [path.name for path in manifest.checkpoints(Path(trainer.args.output_dir))] == ["checkpoint-1"]


def test_weights_that_are_not_finite_are_never_saved(build: Any) -> None:
    """T-2."""

    class Poison(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    model.model.norm.weight[0] = float("nan")

    trainer = build(TinyZeroTrainer, max_steps=3, save_strategy="steps", save_steps=1, callbacks=[Poison()])
    with pytest.raises(NumericFailure, match="nothing was saved"):
        trainer.train()
    assert [path.name for path in manifest.checkpoints(Path(trainer.args.output_dir))] == ["checkpoint-1"]


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(build: Any, tmp_path: Path) -> None:
    straight = build(TinyZeroTrainer, max_steps=4, output_dir=str(tmp_path / "straight"))
    straight.train()
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "stopped")}
    build(TinyZeroTrainer, **settings).train()
    resumed = build(TinyZeroTrainer, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    for mine, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
