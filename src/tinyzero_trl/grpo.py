"""Reinforcement learning of one recipe: `accelerate launch src/tinyzero_trl/grpo.py +countdown=grpo-tiny`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts this folder first: our modules would stand in for libraries of the same name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL sends a ping as a trainer is made; 0 allows it
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from tinyzero_trl import config, estimate, generation
from tinyzero_trl.failures import exit_code_of
from tinyzero_trl.launch import end_with_launcher
from tinyzero_trl.models import init_arguments, policy_arguments, settle_adapter
from tinyzero_trl.runs import folder as run_folder
from tinyzero_trl.runs import record
from tinyzero_trl.storage import trust
from tinyzero_trl.threads import bound_waiting


def train(words: Sequence[str]) -> int:
    """Train by the recipe and overrides in `words`; returns the exit code: 0, or 128 + the number of the signal that stopped the run."""
    end_with_launcher()
    bound_waiting()
    config.check_environment()
    words, trusts_code = trust.without_option(words)
    words, is_only_shown = config.without_options(words, program="grpo")
    num_processes = config.num_processes_here()
    cfg = config.compose(words, program="grpo")
    if is_only_shown:
        return config.show(cfg)
    run_folder.check_place(cfg)
    run = config.check_run(cfg, num_processes=num_processes)
    if config.is_first_process():
        for line in [*run.warnings, *estimate.warnings(cfg, num_processes=num_processes)]:
            print(f"note: {line}", file=sys.stderr, flush=True)
        print(f"batch: {run.batch}", flush=True)

    from tinyzero_trl.trainer import TinyZeroTrainer

    data = record.data_of(cfg, run.train_rows, run.eval_rows, columns=run.task.columns)
    seeds = {"trainer": cfg.trainer.seed, "data": cfg.data.seed}
    with run_folder.opened(cfg, num_processes=num_processes, data=data, seeds=seeds, trusts_code=trusts_code) as folder:
        run_folder.announce(folder)
        if folder.is_finished:
            return 0
        settle_adapter(cfg, run.start.location, folder.path)
        run.args.output_dir = str(folder.path)
        run.args.model_init_kwargs = init_arguments(cfg)
        with generation.engine(cfg, folder.path) as vllm_generation:
            trainer = TinyZeroTrainer(
                **policy_arguments(cfg),
                reward_funcs=config.reward_functions(cfg, run.rewards),
                args=run.args,
                train_dataset=run.train_rows,
                eval_dataset=run.eval_rows,
                processing_class=run.start.tokenizer,
                rollout_func=generation.rollout_function(cfg),
                vllm_generation=vllm_generation,
                task=run.task,
                seconds_before=folder.seconds_before,
                **config.features(cfg),
            )
            trainer.train(resume_from_checkpoint=str(folder.resume_from) if folder.resume_from else None)
        if not trainer.interrupted_by:
            trainer.save_final(folder.path / "model")
        # A process that leaves while the threads of its group run may abort, and the launch fails after all was done.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    signal = trainer.interrupted_by
    run_folder.say_what_next(folder, task=run.task.name, signal=signal, step=trainer.state.global_step)
    return 128 + signal if signal else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(train, sys.argv[1:]))
