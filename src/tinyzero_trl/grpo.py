"""Reinforcement learning of one recipe: `accelerate launch src/tinyzero_trl/grpo.py +countdown=grpo-tiny`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by path, Python puts this folder first: our statistics.py would stand in for the standard library's.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from tinyzero_trl import checks, run_folder
from tinyzero_trl.config import CONFIG_EXIT, ConfigError, compose, model_path, trainer_arguments


def train(argv: Sequence[str]) -> int:
    """Run the recipe a command line names; returns the exit code."""
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    cfg = compose(argv, program="grpo")
    chosen = checks.parts(cfg)
    checks.check_method(cfg, num_processes=num_processes)
    train_rows, eval_rows = checks.rows(cfg, chosen)
    tokenizer = checks.tokenizer_of(cfg)
    folder = run_folder.choose(cfg, num_processes=num_processes)
    args = trainer_arguments(
        cfg,
        program="grpo",
        output_dir=str(folder.path),
        reward_weights=[float(weight) for weight in cfg.rewards.values()],
        model_init_kwargs={"dtype": cfg.model.dtype, **(cfg.trainer.model_init_kwargs or {})},
    )
    checks.check_rows(cfg, chosen, train_rows, tokenizer, generation_batch_size=args.generation_batch_size)

    from tinyzero_trl.rewards import for_trl
    from tinyzero_trl.trainer import TinyZeroTrainer

    with run_folder.locked(folder.path):
        run_folder.write_record(folder.path, cfg, data={}, seeds={})
        trainer = TinyZeroTrainer(
            model=model_path(cfg.model.model_name_or_path),
            reward_funcs=[for_trl(reward, name=name) for name, reward in chosen.rewards.items()],
            args=args,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            task=chosen.task,
        )
        trainer.train()
        trainer.save_model(str(folder.path / "model"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(train(sys.argv[1:]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(CONFIG_EXIT)
