"""SIGKILL at many moments of an evaluation, among the writing of shards and of the final files; it goes on and ends as one never killed (E-10).

This file is its own program: one process imports the libraries once and forks a child for each attempt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [6, pytest.param(30, marks=pytest.mark.nightly)])
def test_an_evaluation_killed_at_any_moment_has_the_same_figures_and_no_sample_twice(num_kills, tmp_path):
    from small_models import make_llama

    model = make_llama(tmp_path / "model")
    command = [sys.executable, __file__, str(model), str(tmp_path), str(num_kills)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    print(report)
    assert report["kills"] == num_kills
    assert report["drawn_again"] == []
    assert report["different"] == []
    assert report["doubled"] == []
    assert report["left_behind"] == []
    assert report["while_writing_a_shard"] >= num_kills // 6
    assert report["while_writing_the_end"] >= num_kills // 6


def attempt(words: list[str], *, log: Path, last_event: int | None, is_end: bool) -> None:
    """Evaluate in this process; where `last_event` is given, SIGKILL it before that change of a file of the evaluation.

    is_end: count from when the final files are written.
    """
    from tinyzero_trl.evaluation import command_line, unfinished

    num_events, is_counting = 0, not is_end
    keep = unfinished.keep

    def logged(folder, places, completions):
        keep(folder, places, completions)
        with log.open("a") as file:  # only what is whole on disk counts as drawn
            file.write("".join(f"{place}\n" for place in places))

    def watch(event, arguments):
        nonlocal num_events, is_counting
        is_change = event in ("os.rename", "os.remove", "os.rmdir") or (
            event == "open" and arguments[1] in ("w", "wb", "r+b")
        )
        is_relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # rmtree names files in an open folder
        if is_change and (is_relative or "/evaluation/" in str(arguments[0])):
            is_counting |= str(arguments[0]).endswith("/summary.json")
            num_events += is_counting
            if num_events == last_event:
                os.kill(os.getpid(), signal.SIGKILL)

    unfinished.keep = logged
    if last_event is not None:
        sys.addaudithook(watch)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os._exit(command_line.main(words, task="countdown"))


def forked(
    words: list[str], *, log: Path, last_event: int | None = None, is_end: bool = False, seconds: float | None = None
) -> int:
    """Exit code of an attempt in a child of its own, killed after `seconds` of its time where they are given."""
    pid = os.fork()
    if pid == 0:
        attempt(words, log=log, last_event=last_event, is_end=is_end)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(model: Path, folder: Path, num_kills: int) -> None:
    import pyarrow.parquet  # noqa: F401
    import torch  # noqa: F401
    import transformers
    from datasets import Dataset  # noqa: F401
    from rich import console, progress, table  # noqa: F401

    from tinyzero_trl.evaluation import (
        command_line,  # noqa: F401
        scores,
    )
    from tinyzero_trl.generation import sampler  # noqa: F401

    # Attributes of transformers are imported when first asked for: once here, and not in every child.
    for name in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        getattr(transformers, name)
    draw = random.Random(0)
    words = ["--model_path", str(model), "--source", "generated", "--n", "12", "--k", "2"]
    words += ["--max_new_tokens", "12", "--batch_size", "4", "--output"]
    began = time.perf_counter()
    assert forked([*words, str(folder / "whole")], log=folder / "whole.log") == 0
    usual = time.perf_counter() - began
    whole = folder / "whole" / "evaluation" / "base"
    report = {"kills": 0, "attempts": 0, "evaluations": 0, "while_writing_a_shard": 0, "while_writing_the_end": 0}
    lists = {name: [] for name in ("different", "doubled", "left_behind", "drawn_again")}
    while report["kills"] < num_kills:
        report["evaluations"] += 1
        output, log = folder / f"cut-{report['evaluations']}", folder / f"cut-{report['evaluations']}.log"
        place = output / "evaluation" / "base"
        code = None
        while code != 0:
            # A kill by the clock hits anything; one by the number of the change hits the writing.
            how = {"seconds": draw.random() * usual}
            if report["attempts"] % 3 == 1:
                how = {"last_event": draw.randint(1, 4)}
            elif report["attempts"] % 3 == 2:
                how = {"last_event": draw.randint(3, 13), "is_end": True}
            report["attempts"] += 1
            code = forked([*words, str(output)], log=log, **(how if report["kills"] < num_kills else {}))
            assert code in (0, -signal.SIGKILL), code
            if code:
                report["kills"] += 1
                kept = list(place.glob("unfinished/*"))
                report["while_writing_a_shard"] += any(path.name.endswith(".part") for path in kept)
                is_at_end = any(place.glob(f".{scores.SAMPLES}.*.part")) or (place / scores.SAMPLES).exists()
                report["while_writing_the_end"] += is_at_end
        drawn = log.read_text().split()
        samples = scores.read_samples(place)
        if samples != scores.read_samples(whole) or metrics_of(place) != metrics_of(whole):
            lists["different"].append(place.name)
        if len({(sample.problem, sample.sample) for sample in samples}) != len(samples) or len(samples) != 24:
            lists["doubled"].append(output.name)
        if len(set(drawn)) != len(drawn):
            lists["drawn_again"].append(output.name)
        if sorted(path.name for path in place.iterdir()) != ["samples.parquet", "summary.json"]:
            lists["left_behind"].append([output.name, *sorted(path.name for path in place.iterdir())])
    print(json.dumps(report | lists))


def metrics_of(folder: Path) -> object:
    return json.loads((folder / "summary.json").read_text())["metrics"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
