"""Reinforcement learning of one recipe: `accelerate launch src/tinyzero_trl/grpo.py +countdown=grpo-tiny`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts this folder first: our statistics.py would stand in for the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL sends a ping as a trainer is made; 0 allows it
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from tinyzero_trl import config, estimate
from tinyzero_trl.config import batch_sizes, checks, combinations, generation, processes, rewards
from tinyzero_trl.failures import exit_code_of
from tinyzero_trl.generation.engines import rollout_function
from tinyzero_trl.launch import end_with_launcher
from tinyzero_trl.models import checked_start, init_arguments, policy_arguments, settle_adapter, stop_strings
from tinyzero_trl.runs import folder as run_folder
from tinyzero_trl.runs import record
from tinyzero_trl.storage import trust


def train(words: Sequence[str]) -> int:
    """Run what a command line says; returns the exit code: 0, or 128 + the number of the signal that stopped it."""
    end_with_launcher()
    processes.check_environment()
    words, trusts_code = trust.without_option(words)
    words, is_only_shown = config.without_options(words, program="grpo")
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))

    cfg = config.compose(words, program="grpo")
    if is_only_shown:
        return config.show(cfg)
    run_folder.check_place(cfg)
    chosen = checks.parts(cfg)
    checks.check_method(cfg, num_processes=num_processes)
    rewards.check_groups(cfg, chosen.rewards, num_processes=num_processes)
    generation.check_engine(cfg, num_processes=num_processes)
    generation.check_installed(cfg)
    combinations.check_installed(cfg)
    start = checked_start(cfg)
    if os.environ.get("RANK", "0") == "0":
        warnings = estimate.warnings(cfg, num_processes=num_processes)
        for line in [*combinations.advice(cfg, num_processes=num_processes), *generation.notes(cfg), *warnings]:
            print(f"note: {line}", file=sys.stderr, flush=True)
        print(f"batch: {batch_sizes.shown(cfg, num_processes=num_processes)}", flush=True)
    stop_strings.check_stop(cfg.generation.stop, name="generation.stop", tokenizer=start.tokenizer)
    train_rows, eval_rows = checks.rows(cfg, chosen, tokenizer=start.tokenizer)
    args = config.trainer_arguments(cfg, program="grpo", reward_weights=list(cfg.rewards.values()))
    combinations.check_optimizer(args)
    checks.check_rows(cfg, chosen, train_rows, start, generation_batch_size=args.generation_batch_size)
    if eval_rows is not None:
        checks.check_rows(cfg, chosen, eval_rows, start, generation_batch_size=0, name="evaluation")

    from tinyzero_trl.config import features
    from tinyzero_trl.generation import engines
    from tinyzero_trl.trainer import TinyZeroTrainer

    data = {
        "source": cfg.data.source,
        "fingerprint": record.fingerprint(train_rows, chosen.task.columns),
        "num_train": len(train_rows),
        "num_test": len(eval_rows) if eval_rows is not None else 0,
    }
    seeds = {"trainer": cfg.trainer.seed, "data": cfg.data.seed}
    with run_folder.opened(cfg, num_processes=num_processes, data=data, seeds=seeds, trusts_code=trusts_code) as folder:
        run_folder.announce(folder)
        if folder.is_finished:
            return 0
        settle_adapter(cfg, start.location, folder.path)
        args.output_dir = str(folder.path)
        args.model_init_kwargs = init_arguments(cfg)
        with engines.engine(cfg, folder.path) as vllm_generation:
            trainer = TinyZeroTrainer(
                **policy_arguments(cfg),
                reward_funcs=rewards.reward_functions(cfg, chosen.rewards),
                args=args,
                train_dataset=train_rows,
                eval_dataset=eval_rows,
                processing_class=start.tokenizer,
                rollout_func=rollout_function(cfg),
                vllm_generation=vllm_generation,
                task=chosen.task,
                seconds_before=folder.seconds_before,
                **features(cfg),
            )
            trainer.train(resume_from_checkpoint=str(folder.resume_from) if folder.resume_from else None)
        if not trainer.interrupted_by:
            trainer.save_final(folder.path / "model")
        # A process that leaves while the threads of its group run may abort, and the launch fails after all was done.
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    signal, step = trainer.interrupted_by, trainer.state.global_step
    run_folder.say_what_next(folder, task=chosen.task.name, signal=signal, step=step)
    return 128 + signal if signal else 0


if __name__ == "__main__":
    sys.exit(exit_code_of(train, sys.argv[1:]))
