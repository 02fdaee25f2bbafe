"""Supervised pre-training of a tiny base model from nothing: `python src/tinyzero_trl/sft.py +countdown=sft-tiny`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts this folder first: our modules would stand in for libraries of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tinyzero_trl import config, pretraining
from tinyzero_trl.failures import exit_code_of
from tinyzero_trl.launch import end_with_launcher
from tinyzero_trl.runs import folder as run_folder
from tinyzero_trl.runs import record
from tinyzero_trl.storage import manifest
from tinyzero_trl.threads import bound_waiting


def train(words: Sequence[str]) -> int:
    """Train by the recipe and overrides in `words`; returns the exit code."""
    end_with_launcher()
    bound_waiting()
    config.check_environment()
    words, is_only_shown = config.without_options(words, program="sft")
    cfg = config.compose(words, program="sft")
    if is_only_shown:
        return config.show(cfg)
    run_folder.check_place(cfg)
    shares_by_stage = pretraining.stages_of(cfg)
    run = config.check_pretraining(cfg)

    from datasets import Dataset
    from trl import SFTTrainer

    rows_by_task = pretraining.problems(cfg.data)
    stages = [
        pretraining.stage(rows_by_task, shares, format_name=cfg.format, seed=seed) for seed, shares in shares_by_stage
    ]
    model, tokenizer = pretraining.start(cfg, stages[-1], run.start)
    rows = [
        row
        for number, texts in enumerate(stages, start=1)
        for row in pretraining.dealt(
            pretraining.examples(texts, tokenizer), batch_size=run.args.per_device_train_batch_size, seed=number
        )
    ]
    dataset = Dataset.from_list(rows)
    data = {"source": "generated", "num_train": len(rows), "num_test": 0}
    data["fingerprint"] = record.fingerprint(dataset, ("input_ids",))
    with run_folder.opened(cfg, num_processes=1, data=data, seeds={"trainer": run.args.seed}) as folder:
        run_folder.announce(folder)
        if folder.is_finished:
            return 0
        run.args.output_dir = str(folder.path)
        trainer = SFTTrainer(model=model, args=run.args, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        trainer.save_model(str(folder.path / "model"))
        tokenizer.save_pretrained(folder.path / "model")
        # It is a pickle and may hold tokens: runs keep none, and run.yaml has the same content.
        (folder.path / "model" / "training_args.bin").unlink()
        manifest.seal(folder.path / "model", step=trainer.state.global_step)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(train, sys.argv[1:]))
