"""SIGKILL and SIGTERM at random moments, also while saving; the run goes on and ends as if nothing had been (C-1, C-8, T-5, T-8).

This file is its own program: one process imports the libraries once and forks a child for each attempt.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

STEPS = 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_kills", "num_terms"), [(8, 4), pytest.param(100, 100, marks=pytest.mark.nightly)], ids=["few", "many"]
)
def test_a_run_stopped_at_random_moments_ends_as_one_that_was_not(
    num_kills: int, num_terms: int, tiny_llama: Path, tmp_path: Path
) -> None:
    """C-1, C-8, T-8 (SIGKILL), T-5 (SIGTERM: exit code 143 and nothing done twice)."""
    command = [sys.executable, __file__, str(tiny_llama), str(tmp_path), str(num_kills), str(num_terms)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    kills, terms = (json.loads(line) for line in done.stdout.splitlines()[-2:])
    print(kills, terms)
    assert (kills["stops"], terms["stops"]) == (num_kills, num_terms)
    assert kills["different"] == terms["different"] == []
    assert kills["while_saving"] > 0
    assert set(kills["codes"]) <= {"-9"}
    assert set(terms["codes"]) <= {"143", "-15"}
    assert terms["codes"]["143"] >= num_terms / 2  # those sent while a checkpoint was written, at least


def attempt(model: Path, folder: Path) -> int:
    """Train in `folder` from its newest usable checkpoint to the end, or until told to stop; returns the exit code."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig

    from tinyzero_trl.runs import record
    from tinyzero_trl.storage import manifest
    from tinyzero_trl.tasks.countdown import TASK
    from tinyzero_trl.trainer import TinyZeroTrainer

    start = manifest.newest_usable(folder).path
    record.cut_metrics(folder, step=int(start.name.split("-")[1]) if start else 0)
    rows = [{"prompt": f"{n} + {n + 3} =", "prefill": "", "nums": [n, n + 3], "target": 9} for n in range(8)]
    args = GRPOConfig(
        output_dir=str(folder), per_device_train_batch_size=8, gradient_accumulation_steps=2, num_generations=4,
        max_completion_length=8, max_steps=STEPS, num_iterations=2, learning_rate=1e-3, logging_steps=1, save_steps=1,
        save_total_limit=2, report_to="none", bf16=False, use_cpu=True, seed=7, disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = TinyZeroTrainer(
        model=str(model), reward_funcs=shortness, args=args, train_dataset=Dataset.from_list(rows), task=TASK,
        processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    return 128 + trainer.interrupted_by if trainer.interrupted_by else 0


def shortness(completions: list[str], **columns: object) -> list[float]:
    return [1.0 / (1 + len(text)) for text in completions]


def fork(model: Path, folder: Path) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        quiet = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = attempt(model, folder)
    finally:
        os._exit(code)


def ended(child: int) -> None:
    assert os.waitpid(child, 0)[1] == 0, "an attempt failed by itself"


def waited(child: int, seconds: float, sign: Path | None) -> bool:
    """Let a child work for some time and, where a sign is given, on until that appears; whether it still works then."""
    time.sleep(seconds)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if sign is None or sign.exists():
            return True
        time.sleep(0.001)
    return False


def main(model: Path, work: Path, num_kills: int, num_terms: int) -> None:
    import datasets  # noqa: F401
    import trl  # noqa: F401

    import tinyzero_trl.trainer  # noqa: F401

    straight = work / "straight"
    straight.mkdir()
    began = time.monotonic()
    ended(fork(model, straight))
    length = time.monotonic() - began
    for number, num_stops in ((signal.SIGKILL, num_kills), (signal.SIGTERM, num_terms)):
        print(json.dumps(stopped(model, straight, length=length, number=number, num_stops=num_stops)), flush=True)


def stopped(model: Path, straight: Path, *, length: float, number: signal.Signals, num_stops: int) -> dict[str, Any]:
    """The outcome of runs that were sent this many signals. length: of the run that was not, in seconds."""
    sys.path.insert(0, str(Path(__file__).parent))
    from equal_runs import different

    dice, folder = random.Random(num_stops), straight.with_name(f"stopped by {number.name}")
    stops, saving, wrong, codes = 0, 0, [], Counter[str]()
    while stops < num_stops:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        while stops < num_stops:
            child = fork(model, folder)
            if not waited(child, dice.uniform(0.1, 0.7) * length, folder / "unfinished" if stops % 2 else None):
                break  # done before its time; the next run of the chain begins
            os.kill(child, number)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code == 0:
                break  # its last step was behind it
            codes[str(code)] += 1
            stops += 1
            saving += (folder / "unfinished").exists()
        else:
            ended(fork(model, folder))
        wrong += different(folder, straight)
    return {"stops": stops, "while_saving": saving, "codes": codes, "different": wrong}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
