"""The training phase of our trainer against stock GRPOTrainer's, on the same rollouts; README.md says what is measured.

python docs/benchmarks/trainer_vs_trl.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed, where it is installed, would warn that it guesses
sys.path.insert(0, str(Path(__file__).resolve().parent))

import forced
import numpy as np
from apart import run_apart
from forced import DISTRIBUTIONS, NUM_GENERATIONS, NUM_PROMPTS, Shape

SHARES = (0.0, 0.5, 0.8)
BAR = 1e-6
"""Largest difference of a parameter after the step, in float32."""


@dataclass(frozen=True)
class Case:
    """One measurement, apart from whose trainer it is."""

    distribution: str
    share: float
    variant: str
    """`on policy`; `IS`: with vLLM's importance-sampling correction; `mu=2`: two updates on the same rollouts."""
    loss_type: str
    longest: int
    shape: Shape
    threads: int
    learning_rate: float
    repeat: int

    @property
    def scale(self) -> float:
        return DISTRIBUTIONS[self.distribution].scale(self.longest)

    @property
    def num_constant(self) -> int:
        """Constant groups of this repeat, rounded so that over the repeats the share comes out."""
        return round(self.share * NUM_PROMPTS * (self.repeat + 1)) - round(self.share * NUM_PROMPTS * self.repeat)

    def windows(self) -> list[forced.Window]:
        """A short one to warm up, and the one that is measured."""
        rng = np.random.default_rng([self.repeat, *self.distribution.encode()])
        size = NUM_PROMPTS * NUM_GENERATIONS
        drawn = DISTRIBUTIONS[self.distribution].draw(rng, size, scale=self.scale)
        prompt_tokens = max(1, round(forced.PROMPT_TOKENS * self.scale))
        common = {"prompt_tokens": prompt_tokens, "vocabulary": self.shape.vocabulary, "rng": rng}
        return [
            forced.window([forced.WARM_UP_TOKENS] * size, num_constant=0, **common),
            forced.window(drawn, num_constant=self.num_constant, **common),
        ]


def measure(case: Case, is_ours: bool) -> dict[str, Any]:
    """The measured step of one trainer, and all parameters before and after it."""
    import datasets
    import torch
    import transformers
    from trl import GRPOConfig, GRPOTrainer
    from watch import Watch

    from tinyzero_trl.trainer import TinyZeroTrainer

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(case.threads)
    windows = case.windows()
    num_updates = 2 if case.variant == "mu=2" else 1
    max_completion = round(DISTRIBUTIONS[case.distribution].cap * case.scale)
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=NUM_PROMPTS * NUM_GENERATIONS // 8,
            num_generations=NUM_GENERATIONS,
            num_iterations=num_updates,
            max_steps=2 * num_updates,
            max_completion_length=max_completion,
            loss_type=case.loss_type,
            scale_rewards="none" if case.loss_type == "dr_grpo" else "group",
            vllm_importance_sampling_mode="token_truncate",
            # Adam would blow rounding of gradients near 0 up to full steps, and clipping hide a wrong scale.
            optim="sgd",
            max_grad_norm=0.0,
            learning_rate=case.learning_rate,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            seed=case.repeat,
        )
        trainer = (TinyZeroTrainer if is_ours else GRPOTrainer)(
            model=forced.new_model(case.shape, max_length=2 * (max_completion + forced.PROMPT_TOKENS)),
            reward_funcs=forced.earned_reward,
            args=args,
            train_dataset=datasets.Dataset.from_list([{"prompt": str(n)} for n in range(2 * NUM_PROMPTS)]),
            processing_class=forced.new_tokenizer(case.shape.vocabulary),
            rollout_func=forced.rollout_func(windows),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        if case.variant == "IS":
            _pretend_vllm(trainer)
        watch = Watch(trainer)
        watch.keep_parameters = True
        trainer.train()
    steps = watch.steps[num_updates:]
    return {
        "seconds": sum(step.training for step in steps),
        "cpu": sum(step.cpu for step in steps),
        "tokens": sum(step.tokens for step in steps),
        "real_tokens": sum(step.real_tokens for step in steps),
        "passes": sum(step.passes for step in steps),
        "peak": max(step.peak for step in steps),
        "before": watch.parameters[num_updates].numpy(),
        "after": watch.parameters[-1].numpy(),
    }


def _pretend_vllm(trainer: Any) -> None:
    """vLLM's rollouts as the trainer sees them, after its construction, which would start an engine."""

    class Nothing:
        def sync_weights(self) -> None: ...

    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Nothing(), -1


def compare(cases: list[Case]) -> dict[str, Any]:
    """Ours against stock over the repeats of one case, each measurement in a process of its own, by turns."""
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    difference = update = 0.0
    for case in cases:
        # Whoever comes first in one repeat comes second in the next.
        for is_ours in (False, True) if case.repeat % 2 == 0 else (True, False):
            found[is_ours].append(run_apart(measure, case, is_ours))
        stock, ours = found[False][-1], found[True][-1]
        difference = max(difference, float(np.abs(ours.pop("after") - stock["after"]).max()))
        update = max(update, float(np.abs(stock.pop("after") - stock.pop("before")).max()))
        ours.pop("before")
    total = {
        who: {
            key: sum(run[key] for run in found[is_ours])
            for key in ("seconds", "cpu", "tokens", "real_tokens", "passes")
        }
        | {"peak": max(run["peak"] for run in found[is_ours])}
        for who, is_ours in (("stock", False), ("ours", True))
    }
    first = cases[0]
    return {
        "distribution": first.distribution,
        "scale": first.scale,
        "constant": sum(case.num_constant for case in cases) / (NUM_PROMPTS * len(cases)),
        "variant": first.variant,
        "difference": difference,
        "update": update,
        "ratio": {key: total["stock"][key] / total["ours"][key] for key in ("seconds", "cpu", "tokens", "peak")},
        **total,
    }


def main() -> int:
    """Measure what the command line asks for and print it; exit code 1 where parameters differ by more than the bar."""
    arguments = _parser().parse_args()
    from report import markdown, show

    started = time.perf_counter()
    results = []
    for cases in plan(arguments):
        results.append(compare(cases))
        show(results[-1])
    seconds = time.perf_counter() - started
    header = {
        "command": " ".join(["python", "docs/benchmarks/trainer_vs_trl.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}",
        "loss": arguments.loss_type,
        "shape": asdict(cases[0].shape),
        "seconds": seconds,
    }
    print(markdown(header, results))
    if arguments.json:
        arguments.json.write_text(json.dumps({**header, "results": results}, indent=1), encoding="utf-8")
    return int(any(result["difference"] > BAR for result in results))


def plan(arguments: argparse.Namespace) -> list[list[Case]]:
    """The cases in the order they are measured, each with its repeats."""
    names = arguments.distribution or list(DISTRIBUTIONS)
    chosen = [(name, share, "on policy") for name in names for share in SHARES]
    chosen += [(name, 0.5, variant) for variant in ("IS", "mu=2") for name in dict.fromkeys((names[0], names[-1]))]
    shape = Shape(layers=2, hidden=64, heads=2) if arguments.quick else Shape()
    longest = 32 if arguments.quick else arguments.longest
    return [
        [
            Case(
                distribution=name,
                share=share,
                variant=variant,
                loss_type=arguments.loss_type,
                longest=longest,
                shape=shape,
                threads=arguments.threads,
                learning_rate=arguments.learning_rate,
                repeat=repeat,
            )
            for repeat in range(arguments.repeats)
        ]
        for name, share, variant in chosen
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distribution", nargs="+", choices=list(DISTRIBUTIONS), help="of lengths (default: all)")
    parser.add_argument("--repeats", type=int, default=2, help="draws of lengths and tokens a case (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="of each measured process (default: 2)")
    parser.add_argument("--longest", type=int, default=384, help="tokens that caps are scaled down to (default: 384)")
    parser.add_argument("--loss-type", default="dr_grpo", choices=["grpo", "dr_grpo", "dapo"])
    parser.add_argument("--learning-rate", type=float, default=1.0, help="of plain SGD (default: 1)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny lengths and model: does it run, are the weights right"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
