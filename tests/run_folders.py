"""A run folder as training and evaluation leave it, made up in a second: what the report is tested on."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tinyzero_trl.evaluation import scores
from tinyzero_trl.pretraining.countdown_traces import attempts
from tinyzero_trl.rewards import verified
from tinyzero_trl.rollout import Rollout
from tinyzero_trl.tasks import TASKS

COUNTDOWN = TASKS["countdown"]


def write_run(
    folder: Path, *, num_steps: int = 60, num_problems: int = 200, eval_every: int = 20, num_eval: int = 24
) -> Path:
    """`folder` as a whole run of a model that learns to check and to go on."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(_record(num_steps), sort_keys=False))
    rows = COUNTDOWN.load(
        split="test", source="generated", num_rows=num_problems, min_numbers=3, max_numbers=3
    ).to_list()
    lines, seconds, num_tokens = [], 4.0, 0
    for step in range(1, num_steps + 1):
        skill = _skill(step / num_steps)
        batch = [_sample(draw, draw.choice(rows), group, skill) for group in range(16) for _ in range(8)]
        _write_rollouts(folder, "train", step, batch)
        if step % eval_every == 0:
            held_out = [_sample(draw, row, index, skill) for index, row in enumerate(rows[:num_eval])]
            _write_rollouts(folder, "eval", step, held_out)
            lines.append({"step": step, "seconds": seconds, **{f"eval_{k}": v for k, v in _measure(held_out).items()}})
        seconds += 5 + draw.random()
        num_tokens += 12_000
        spent = {"seconds/generation": 2.4 + draw.random() / 3, "seconds/scoring": 0.04, "seconds/training": 1.9}
        entropy = 0.55 * math.exp(-2 * step / num_steps) + 0.1 + draw.gauss(0, 0.01)
        speed = 3000 + draw.gauss(0, 120)
        line = {"step": step, "seconds": round(seconds, 3), "num_tokens": num_tokens, "entropy": entropy}
        lines.append({**line, "tokens_per_second": speed, **spent, **_measure(batch)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, skill in (("base", _skill(0)), ("final", _skill(1))):
        samples = [_sample(draw, row, index, skill) for index, row in enumerate(rows)]
        metrics = {key: estimate.as_dict() for key, estimate in scores.metrics(samples, task=COUNTDOWN).items()}
        summary = {"schema": 1, "name": name, "task": "countdown", "temperature": 1.0, "k": 1}
        summary |= {"num_problems": len(rows), "metrics": metrics}
        scores.write(folder / "evaluation" / name, summary=summary, samples=samples)
    return folder


def write_benchmarks(folder: Path, *, k: int = 4) -> Path:
    """Two benchmarks of a run, answered before and after training as `evaluate --benchmarks` leaves them, and one only after."""
    draw = random.Random(1)
    math_task = TASKS["math"]
    for name, num_problems, skills in (
        ("math500", 120, (0.35, 0.6)),
        ("aime24", 30, (0.1, 0.15)),
        ("mine", 40, (None, 0.5)),
    ):
        for side, skill in zip(("base", "final"), skills, strict=True):
            if skill is None:
                continue
            samples = []
            for problem in range(num_problems):
                row = {"problem": f"What is {problem} + {problem}?", "answer": str(2 * problem), "source": name}
                row |= {"level": str(problem % 5 + 1) if name == "math500" else "", "prompt": "...", "prefill": ""}
                for sample in range(k):
                    is_truncated = draw.random() < 0.08
                    right = 2 * problem if draw.random() < skill else 2 * problem + 1
                    text = "I think that" if is_truncated else f"So it is $\\boxed{{{right}}}$."
                    length = draw.randrange(200, 3000)
                    samples.append(
                        verified(
                            math_task,
                            row,
                            problem=problem,
                            sample=sample,
                            completion=text,
                            num_completion_tokens=length,
                            is_truncated=is_truncated,
                        )
                    )
            summary = {
                "schema": 1,
                "name": side,
                "task": "math",
                "benchmark": name,
                "model": "model",
                "temperature": 0.6,
            }
            summary |= {"top_p": 0.95, "k": k, "num_problems": num_problems, "max_new_tokens": 4096}
            metrics = {key: estimate.as_dict() for key, estimate in scores.metrics(samples, task=math_task).items()}
            scores.write(folder / "evaluation" / side / name, summary=summary | {"metrics": metrics}, samples=samples)
    return folder


def _skill(progress: float) -> float:
    return 1 / (1 + math.exp(-7 * (progress - 0.4)))


def _sample(draw: random.Random, row: dict[str, Any], problem: int, skill: float) -> Rollout:
    """A thought in the tiny model's manner: the more skill, the longer it goes on and the likelier it is right."""
    legal = attempts(tuple(sorted(row["nums"])))
    solutions = [attempt for attempt in legal if attempt.value == row["target"]]
    lines, attempt = [], draw.choice(legal)
    for _ in range(10):
        attempt = draw.choice(solutions) if solutions and draw.random() < 0.1 + 0.25 * skill else draw.choice(legal)
        is_right = attempt.value == row["target"]
        says_yes = is_right or draw.random() < 0.25 * (1 - skill)
        lines.append(f"{attempt}, {'yes' if says_yes else 'no'}")
        if says_yes or draw.random() < 0.3 * (1 - skill):
            break
    answer = attempt.expression if draw.random() > 0.1 * (1 - skill) else attempt.expression + " +"
    is_truncated = draw.random() < 0.06
    completion = "\n" + "\n".join(lines) + ("" if is_truncated else f"\n</think>\n<answer>{answer}</answer>")
    return verified(
        COUNTDOWN,
        {**row, "prompt": f"... {row['nums']} ... {row['target']} ...\n<think>", "prefill": "<think>"},
        problem=problem,
        sample=0,
        completion=completion,
        num_completion_tokens=len(completion) // 3,
        is_truncated=is_truncated,
    )


def _measure(batch: list[Rollout]) -> dict[str, float]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else math.nan

    accuracy = mean([float(s.is_correct) for s in batch])
    outcomes = {f"outcomes/{o}": mean([float(s.outcome == o) for s in batch]) for o in COUNTDOWN.outcomes}
    return {
        "reward": accuracy,
        "accuracy": accuracy,
        **outcomes,
        "length/correct": mean([float(s.num_completion_tokens) for s in batch if s.is_correct]),
        "length/wrong": mean([float(s.num_completion_tokens) for s in batch if not s.is_correct]),
    }


def _write_rollouts(folder: Path, kind: str, step: int, batch: list[Rollout]) -> None:
    (folder / "rollouts").mkdir(exist_ok=True)
    records = [
        {
            "step": step,
            "problem": s.problem,
            "prompt": s.prompt,
            "prefill": s.prefill,
            "completion": s.completion,
            "num_prompt_tokens": 60,
            "num_completion_tokens": s.num_completion_tokens,
            "is_truncated": s.is_truncated,
            "reward": float(s.is_correct),
            "reward/equation": float(s.is_correct),
            "outcome": s.outcome,
            "advantage": 0.0,
            "row": json.dumps(s.row),
        }
        for s in batch
    ]
    pq.write_table(pa.Table.from_pylist(records), folder / "rollouts" / f"{kind}-{step:08d}.parquet")


def _record(num_steps: int) -> dict[str, Any]:
    return {
        "task": "countdown",
        "format": "base",
        "rewards": {"equation": 1.0},
        "algorithm": "grpo",
        "data": {"source": "generated", "num_train_rows": 20000, "min_numbers": 3, "max_numbers": 3},
        "model": {"model_name_or_path": "tiny", "dtype": "float32"},
        "trainer": {"run_name": "grpo-tiny", "max_steps": num_steps, "temperature": 1.0, "learning_rate": 3e-4},
        "provenance": {
            "git_commit": "7cfda08f0d6c4a4e5ab1",
            "git_dirty": True,
            "command": "src/tinyzero_trl/grpo.py +countdown=grpo-tiny",
            "python": "3.11.9",
            "packages": {"tinyzero-trl": "0.1.0", "torch": "2.13.0+cpu", "trl": "1.16.0", "transformers": "5.17.0"},
            "hardware": {"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 2, "gpus": []},
            "data": {"source": "generated", "fingerprint": "a41f5c", "num_train": 20000, "num_test": 200},
            "seeds": {"trainer": 42, "data": 1},
            "started": "2026-11-21T03:00:00+00:00",
        },
    }
