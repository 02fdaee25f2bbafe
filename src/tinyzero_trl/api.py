"""Training and evaluation from Python: `tinyzero train` and `tinyzero evaluate` in a child process, and what they leave as tables.

The child process keeps a notebook safe: it holds no model and no GPU memory between two cells, and its interrupt saves a checkpoint.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyzero_trl.failures import Failure

if TYPE_CHECKING:
    from pandas import DataFrame

FAILURE = re.compile(r"(?:error(?: \(process \d+\))?|tinyzero \w+|evaluate): (?P<message>.*)")
"""The line that a program ends with if it fails."""
FOLDER = re.compile(
    r"(?:run folder: (?P<begun>.+?)(?:, continuing checkpoint-\d+)?|(?P<finished>.+) is finished, so nothing was done;.*)"
)
"""The line in which a run names its folder (runs.folder.announce)."""


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder, read anew with each attribute; `Run(Path("outputs/countdown/<run>"))` opens an old one."""

    folder: Path
    """Everything that happened in the run: docs/run-folder.md."""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved recipe, and under `provenance` where the run comes from: content of run.yaml."""
        from tinyzero_trl.models import read_record

        return read_record(self.folder)

    @property
    def metrics(self) -> DataFrame:
        """A row for each logged step; evaluations during training are rows of their own, with names that begin with `eval_`."""
        import pandas

        from tinyzero_trl.runs import metric_lines

        return pandas.DataFrame(metric_lines(self.folder / "metrics.jsonl"))

    @property
    def rollouts(self) -> DataFrame:
        """A row for each completion: prompt, completion, tokens, rewards, outcome, advantage."""
        import pandas

        return pandas.read_parquet(self.folder / "rollouts")

    @property
    def model(self) -> Path:
        """The folder of the trained model; of a run that was stopped, its newest whole checkpoint. Raises: ConfigError if there is none."""
        from tinyzero_trl.models import locate

        return Path(locate(str(self.folder)).shown)

    def report(self) -> Path:
        """Path of report.html, written anew: one page that needs no network."""
        from tinyzero_trl.report import write_report

        return write_report(self.folder)

    def __repr__(self) -> str:
        said = ""
        if (self.folder / "metrics.jsonl").is_file():
            metrics = self.metrics
            if "accuracy" in metrics and not (rows := metrics.dropna(subset=["accuracy"])).empty:
                said = f": step {rows.step.iloc[-1]}, accuracy {rows.accuracy.iloc[-1]:.1%}"
        return f"Run({str(self.folder)!r}{said})"


@dataclass(frozen=True, repr=False)
class Evaluation:
    """An evaluation folder; `Evaluation(Path("outputs/countdown/<run>/evaluation/final"))` opens an old one."""

    folder: Path
    """summary.json and samples.parquet."""

    @property
    def summary(self) -> dict[str, Any]:
        """The settings of the evaluation, its seconds and its figures: content of summary.json."""
        from tinyzero_trl.evaluation import scores

        return scores.read_summary(self.folder)

    @property
    def metrics(self) -> DataFrame:
        """A row for each figure, such as `pass@1`: its value, its 95 % interval `low` to `high`, and the number of problems `n`."""
        import pandas

        return pandas.DataFrame.from_dict(self.summary["metrics"], orient="index")

    @property
    def samples(self) -> DataFrame:
        """A row for each response: the problem, what the model wrote, and the verdict."""
        import pandas

        return pandas.read_parquet(self.folder / "samples.parquet")

    def __repr__(self) -> str:
        summary = self.summary
        e = summary["metrics"]["pass@1"]
        said = (
            f"pass@1 {e['value']:.1%} [{100 * e['low']:.1f}, {100 * e['high']:.1f}], {summary['num_problems']} problems"
        )
        return f"Evaluation({str(self.folder)!r}: {said})"


def train(recipe: str, *overrides: str, processes: int | None = None, accelerate_config: str | None = None) -> Run:
    """The finished run of a recipe, trained as `tinyzero train` does, its output printed as it comes.

    recipe: `<task>/<name>`, such as "countdown/grpo-tiny", or what the command line takes. overrides: "key=value", as there.
    processes: on this machine. accelerate_config: a file or a name of recipes/accelerate_configs. None: what fits GPUs and recipe.
    An interrupt has the run save a checkpoint first.
    Raises: Failure with the line that the command line ends with, and its exit code.
    """
    task, slash, name = recipe.partition("/")
    is_name = slash and "/" not in name and not recipe.startswith("+") and not name.endswith((".yaml", ".yml"))
    words = [f"+{task}={name}" if is_name else recipe, *overrides]
    words += [] if processes is None else ["--processes", str(processes)]
    words += [] if accelerate_config is None else ["--accelerate_config", accelerate_config]
    lines = _printed("train", words)
    folders = [found["begun"] or found["finished"] for line in lines if (found := FOLDER.fullmatch(line))]
    if not folders:  # such as --help
        raise Failure(f"train: {' '.join(words)} started no run")
    return Run(Path(folders[-1]))


def evaluate(
    model: str | Path | Run,
    task: str | None = None,
    *,
    num_problems: int | None = None,
    num_samples: int | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    format: str | None = None,
    source: str | None = None,
    split: str = "test",
    split_rule: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    engine: str | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """The evaluation of a model on held-out problems, made as `tinyzero evaluate` does, its output printed as it comes.

    model: a run, its folder, a checkpoint, a model folder, a LoRA adapter, "tiny" or a hub id. task: needed if the model comes from no run.
    num_samples: of each problem. output: the folder that gets evaluation/<name>/. None: as the run did, or the command line's default.
    Raises: Failure or ValueError with the line that the command line ends with.
    """
    from tinyzero_trl.evaluation import Settings, plan

    given: dict[str, Any] = {
        "task": task, "n": num_problems, "k": num_samples, "temperature": temperature, "max_new_tokens": max_new_tokens,
        "format": format, "source": source, "split": split, "split_rule": split_rule, "seed": seed, "batch_size": batch_size, "engine": engine,
        "output": None if output is None else Path(output), "name": name,
    }  # fmt: skip
    model_path = str(model.folder if isinstance(model, Run) else model)
    folder = plan.make_plan(Settings(model_path, overwrite=overwrite, **given)).folder
    words = [f"--{option}={value}" for option, value in given.items() if value is not None]
    _printed("evaluate", [f"--model_path={model_path}", *words, *(["--overwrite"] if overwrite else [])])
    return Evaluation(folder)


def _printed(verb: str, words: Sequence[str]) -> list[str]:
    """The lines that a verb printed, each printed here as it comes. Raises: Failure if its exit code is not 0."""
    # -P: what lies in the working directory is not imported in the place of a library, as with the command `tinyzero`.
    command = [sys.executable, "-P", "-m", "tinyzero_trl.cli", verb, *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    lines = []
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.rstrip("\n"))
        except KeyboardInterrupt:
            process.terminate()  # a notebook's interrupt reaches the kernel alone
            for line in process.stdout:
                print(line, end="", flush=True)
            raise
    if process.returncode:
        said = [found["message"] for line in lines if (found := FAILURE.fullmatch(line))] or [
            line for line in lines if line.strip()
        ]
        failure = Failure(said[-1] if said else f"{verb} ended with exit code {process.returncode} and said nothing")
        failure.exit_code = process.returncode
        raise failure
    return lines
