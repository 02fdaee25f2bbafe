"""Supervised pre-training of a tiny base model from nothing: `python src/tinyzero_trl/sft.py +countdown=sft-tiny`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts this folder first: our statistics.py would stand in for the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tinyzero_trl import config, pretraining
from tinyzero_trl.config import check_numbers, combinations, processes
from tinyzero_trl.failures import ConfigError, exit_code_of
from tinyzero_trl.launch import end_with_launcher
from tinyzero_trl.models import checked_start
from tinyzero_trl.runs import folder as run_folder
from tinyzero_trl.runs import record
from tinyzero_trl.storage import manifest


def train(words: Sequence[str]) -> int:
    """Run what a command line says; returns the exit code."""
    end_with_launcher()
    processes.check_environment()
    words, is_only_shown = config.without_options(words, program="sft")
    cfg = config.compose(words, program="sft")
    if cfg.trainer.resume_from_checkpoint:
        raise ConfigError(
            f"trainer.resume_from_checkpoint={cfg.trainer.resume_from_checkpoint}: a supervised run is not continued, it takes "
            "minutes; start it anew without this key"
        )
    if is_only_shown:
        return config.show(cfg)
    run_folder.check_place(cfg)
    check_numbers(cfg)
    shares_by_stage = pretraining.stages_of(cfg)
    begun = checked_start(cfg) if cfg.model.model_name_or_path else None
    combinations.check_trackers(cfg)
    args = config.trainer_arguments(cfg, program="sft", dataset_kwargs={"skip_prepare_dataset": True})
    combinations.check_optimizer(args)

    from datasets import Dataset
    from trl import SFTTrainer

    rows_by_task = pretraining.problems(cfg.data)
    stages = [
        pretraining.stage(rows_by_task, shares, format_name=cfg.format, seed=seed) for seed, shares in shares_by_stage
    ]
    model, tokenizer = pretraining.start(cfg, stages[-1], begun)
    rows = [
        row
        for number, texts in enumerate(stages, start=1)
        for row in pretraining.dealt(
            pretraining.examples(texts, tokenizer), batch_size=args.per_device_train_batch_size, seed=number
        )
    ]
    dataset = Dataset.from_list(rows)
    data = {"source": "generated", "num_train": len(rows), "num_test": 0}
    data["fingerprint"] = record.fingerprint(dataset, ("input_ids",))
    with run_folder.opened(cfg, num_processes=1, data=data, seeds={"trainer": args.seed}) as folder:
        run_folder.announce(folder)
        if folder.is_finished:
            return 0
        args.output_dir = str(folder.path)
        trainer = SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        trainer.save_model(str(folder.path / "model"))
        tokenizer.save_pretrained(folder.path / "model")
        # Unsafe to load, and it may hold tokens: runs keep none (run.yaml says all it says).
        (folder.path / "model" / "training_args.bin").unlink()
        manifest.seal(folder.path / "model", step=trainer.state.global_step)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(train, sys.argv[1:]))
