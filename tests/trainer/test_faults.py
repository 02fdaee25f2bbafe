"""Faults while a run trains or saves: it ends with its exit code, and goes on from the last whole checkpoint."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import at, fails, signals

from tinyzero_trl.failures import ConfigError, exit_code_of
from tinyzero_trl.storage import manifest
from tinyzero_trl.trainer import TinyZeroTrainer

SAVING = {"save_strategy": "steps", "save_steps": 1}


def code_of(trainer: Any, **train: Any) -> int:
    def program(words: Any) -> int:
        trainer.train(**train)
        return 128 + trainer.interrupted_by if trainer.interrupted_by else 0

    return exit_code_of(program, [])


def goes_on(build: Any, folder: Path, *, to: int, **changes: Any) -> None:
    found = manifest.newest_usable(folder)
    again = build(TinyZeroTrainer, max_steps=to, **SAVING, **changes)
    assert code_of(again, resume_from_checkpoint=str(found.path)) == 0
    assert again.state.global_step == to
    assert manifest.newest_usable(folder).path == folder / f"checkpoint-{to}"


@pytest.mark.parametrize("method", ["training_step", "_generate"])
def test_no_memory_left_ends_the_run_with_5_and_three_ways_out(method: str, build: Any, capsys: Any) -> None:
    """T-4."""
    trainer = build(TinyZeroTrainer, max_steps=4, **SAVING)
    at(trainer, method, step=3, do=fails(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")))
    assert code_of(trainer) == 5
    said = capsys.readouterr().err
    for knob in ("per_device_train_batch_size", "max_completion_length", "gradient_checkpointing=true"):
        assert f"trainer.{knob}" in said
    folder = Path(trainer.args.output_dir)
    assert manifest.newest_usable(folder).path == folder / "checkpoint-2"
    goes_on(build, folder, to=4, gradient_checkpointing=True)


def test_a_second_signal_while_a_checkpoint_is_written_stops_at_once_and_the_one_before_stays_whole(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T-7: the second signal means now; the first one's checkpoint is never found half written."""
    monkeypatch.setattr("tinyzero_trl.trainer.ending.PATIENCE_SECONDS", -1.0)
    trainer = build(TinyZeroTrainer, max_steps=4, **SAVING)
    at(trainer, "_get_grad_norm", step=3, do=signals(signal.SIGTERM))
    at(trainer, "_save_optimizer_and_scheduler", step=3, do=signals(signal.SIGTERM))
    folder = Path(trainer.args.output_dir)
    assert code_of(trainer) == 143
    assert (folder / manifest.UNFINISHED / "checkpoint-3").is_dir()
    assert manifest.newest_usable(folder).path == folder / "checkpoint-2"
    goes_on(build, folder, to=4)


def test_two_signals_at_once_are_one(build: Any) -> None:
    """T-7: a launcher repeats the signal it was sent to each of its processes."""
    trainer = build(TinyZeroTrainer, max_steps=4, **SAVING)
    at(trainer, "training_step", step=3, do=signals(signal.SIGTERM))
    assert code_of(trainer) == 143
    assert manifest.newest_usable(Path(trainer.args.output_dir)).path == Path(trainer.args.output_dir) / "checkpoint-3"


@pytest.mark.parametrize("lost", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_sealed_without_a_state_is_refused(lost: str, build: Any) -> None:
    """C-3, C-4: transformers would begin a new optimizer without a word."""
    trainer = build(TinyZeroTrainer, max_steps=1, **SAVING)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    (folder / lost).unlink()
    with pytest.raises(ConfigError, match=f"lacks {lost}, so the run cannot go on"):
        build(TinyZeroTrainer, max_steps=2).train(resume_from_checkpoint=str(folder))


def test_the_best_model_of_transformers_is_named_by_its_place_and_kept(build: Any) -> None:
    """`metric_for_best_model`: while it is written, a checkpoint lies in unfinished/."""
    trainer = build(TinyZeroTrainer, max_steps=5, save_total_limit=1, metric_for_best_model="eval_x", **SAVING)
    save = trainer._save_checkpoint

    def with_evaluation(model: Any, trial: Any) -> None:
        trainer._determine_best_metric({"eval_x": {2: 0.1}.get(trainer.state.global_step, 0.9)}, trial)
        save(model, trial)

    trainer.args.greater_is_better = False
    trainer._save_checkpoint = with_evaluation
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-2")
    assert [path.name for path in manifest.checkpoints(folder)] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    written = (folder / "checkpoint-2" / "trainer_state.json").read_text()
    assert manifest.UNFINISHED not in written
    assert f'"best_model_checkpoint": "{folder}/checkpoint-2"' in written
    assert all(manifest.why_not_usable(path) is None for path in manifest.checkpoints(folder))
    shutil.rmtree(folder / "checkpoint-5")
    goes_on(build, folder, to=5)
