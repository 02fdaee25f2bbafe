"""Evaluating a model: held-out problems -> completions -> verdicts -> an evaluation folder.

Completions are kept in shards as they come (`unfinished`), so an evaluation that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyzero_trl import storage
from tinyzero_trl.config import engine_of_evaluation
from tinyzero_trl.evaluation import benchmarks, scores, unfinished
from tinyzero_trl.evaluation.completions import (
    Draw,
    Loading,
    checked_model,
    fitted_rows,
    opened,
    prompt_ids_of,
    room,
)
from tinyzero_trl.evaluation.plan import Plan, Settings, make_plan, refuse_changed, request
from tinyzero_trl.models import CheckedModel, check_stop, identity_of, weights_of
from tinyzero_trl.rewards import verified
from tinyzero_trl.storage import locked
from tinyzero_trl.task import Row, loaded, prompts, resolve

PACKAGES = ("tinyzero-trl", "torch", "transformers", "trl", "peft", "datasets")
"""Packages whose versions a summary names."""
SHARD = {"transformers": 256, "server": 2048, "colocate": 2048}
"""Completions in a shard by engine.

A stopped evaluation loses one shard at most; vLLM is slow on the last ones of each, so it gets more.
"""


@dataclass(frozen=True)
class Prepared:
    """A plan with its problems, worded and tokenised."""

    plan: Plan
    settings: Settings
    rows: list[Row]
    """The problems: raw columns, prompt and prefill."""
    prompt_ids: list[list[int]]
    """Token ids of each prompt."""
    max_new_tokens: int
    """Most tokens of a response."""

    @property
    def num_samples(self) -> int:
        """Samples of all problems: k of each."""
        return len(self.rows) * self.plan.k

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return max(map(len, self.prompt_ids)) + self.max_new_tokens

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that two attempts must agree on for their samples to be of one evaluation, except the weights."""
        texts = "\0".join(str(row["prompt"]) for row in self.rows)
        return {
            **request(self.plan, self.settings),
            "engine": self.settings.engine,
            "max_new_tokens": self.max_new_tokens,
            "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
        }

    def announcement(self, *, num_known: int) -> str:
        """One line about the problems, the sampling and the samples that exist already."""
        plan = self.plan
        what = self.settings.benchmark.name if self.settings.benchmark else plan.task.name
        how = "greedy" if plan.temperature == 0 else f"temperature {plan.temperature:g}, top-p {plan.top_p:g}"
        if self.settings.engine != "transformers":
            how += f", by vLLM ({self.settings.engine})"
        if plan.stop:
            how += f", stop at {' or '.join(map(repr, plan.stop))}"
        line = f"{what}: {len(self.rows)} problems x {plan.k}, format {plan.format}, {how}, up to {self.max_new_tokens} tokens"
        return line + (f"; {num_known} of {self.num_samples} are answered already" if num_known else "")


def evaluate(settings: Settings) -> Path:
    """The evaluation folder, written. An evaluation that was stopped goes on where it was.

    Raises: ValueError or FileNotFoundError of one line, before weights are read.
    """
    return evaluate_all([settings])[0]


def evaluate_all(asked: Sequence[Settings]) -> list[Path]:
    """The folder of each evaluation of one model, which is loaded once. Complete evaluations are left as they are.

    Raises: ValueError or FileNotFoundError of one line, before anything is written.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    engine = engine_of_evaluation(asked[0].engine)
    asked = [replace(settings, engine=engine) for settings in asked]
    plans = [make_plan(settings) for settings in asked]
    storage.probe(plans[0].folder)
    problems = [rows_of(plan, settings) for plan, settings in zip(plans, asked, strict=True)]
    model = checked_model(plans[0].location)
    evaluations = [prepared(*parts, model) for parts in zip(plans, asked, problems, strict=True)]
    for evaluation in evaluations:
        _refuse_others_samples(evaluation)
    weights = weights_of(plans[0].location)
    with ExitStack() as stack:
        draw: Draw | None = None
        model_id: dict[str, Any] = {}
        for evaluation in evaluations:
            identity = evaluation.identity | {"weights": weights}
            if not evaluation.settings.overwrite and _is_complete(evaluation.plan.folder, identity):
                console.print(f"{evaluation.plan.folder} is complete; --overwrite makes it anew")
                _tidy(evaluation.plan.folder)
                continue
            with locked(evaluation.plan.folder):
                known = unfinished.begin(evaluation.plan.folder, identity, overwrite=evaluation.settings.overwrite)
                console.print(evaluation.announcement(num_known=len(known)))
                model_id = model_id or identity_of(evaluation.plan.location)
                if draw is None and len(known) < evaluation.num_samples:
                    loading = Loading(
                        model,
                        max_length=max(one.max_length for one in evaluations),
                        dtype=evaluation.plan.dtype,
                        batch_size=evaluation.settings.batch_size,
                        stop=evaluation.plan.stop,
                    )
                    draw = stack.enter_context(opened(engine, loading))
                is_whole = not known  # then the seconds are those of all its tokens
                completions, seconds = completed(evaluation, known, draw, console)
                _write(evaluation, completions, seconds, identity | model_id, is_whole=is_whole)
                unfinished.clear(evaluation.plan.folder)
    return [plan.folder for plan in plans]


def rows_of(plan: Plan, settings: Settings) -> list[Row]:
    """The problems, worded; the same ones in the same order for the same source, n and seed.

    Raises: ValueError or FileNotFoundError of one line.
    """
    import datasets

    datasets.disable_progress_bars()
    if settings.benchmark:
        raw = datasets.Dataset.from_list(benchmarks.load(settings.benchmark, num_rows=plan.n, seed=settings.seed))
    else:
        raw = loaded(plan.task, split=settings.split, num_rows=plan.n, seed=settings.seed, **plan.data)
    worded = prompts(raw, resolve(plan.format, among=plan.task.formats, kind="format"))
    rows: list[Row] = worded.to_list()
    return rows


def prepared(plan: Plan, settings: Settings, rows: list[Row], model: CheckedModel) -> Prepared:
    """The plan with its problems tokenised. Raises: ValueError if a prompt leaves no room for a response."""
    check_stop(plan.stop, name="--stop", tokenizer=model.tokenizer)
    rows = fitted_rows(rows, model)
    prompt_ids = prompt_ids_of(model, rows, format_name=plan.format)
    return Prepared(plan, settings, rows, prompt_ids, room(plan, model, prompt_ids))


def completed(
    evaluation: Prepared,
    known: dict[int, unfinished.Completion],
    draw: Draw | None,
    console: Any,
) -> tuple[list[unfinished.Completion], float]:
    """Every completion in order of problem and sample, and the seconds that the missing ones took. Each shard is written as it comes.

    known: completions by place (problem x k + sample) that exist already. A sample's seed depends only on the evaluation's seed,
    the problem and the sample's number, so a stopped evaluation draws the same samples as one that was not.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tinyzero_trl.seeding import seed_of

    k, seconds = evaluation.plan.k, 0.0
    missing = [place for place in range(evaluation.num_samples) if place not in known]
    assert evaluation.settings.engine is not None
    size = SHARD[evaluation.settings.engine]
    if evaluation.settings.engine == "transformers":
        size = evaluation.settings.batch_size or size
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(
            f"Answering with {evaluation.plan.location.shown}", total=evaluation.num_samples, completed=len(known)
        )
        for start in range(0, len(missing), size):
            assert draw is not None
            places = missing[start : start + size]
            began = time.perf_counter()
            completions = draw(
                prompt_ids=[evaluation.prompt_ids[place // k] for place in places],
                seeds=[seed_of(evaluation.settings.seed, place // k, place % k) for place in places],
                max_new_tokens=evaluation.max_new_tokens,
                temperature=evaluation.plan.temperature,
                top_p=evaluation.plan.top_p,
                on_progress=lambda done, _: progress.update(bar, advance=done),
            )
            seconds += time.perf_counter() - began
            unfinished.keep(evaluation.plan.folder, places, completions)
            known.update(zip(places, completions, strict=True))
    return [known[place] for place in range(evaluation.num_samples)], seconds


def _write(
    evaluation: Prepared,
    completions: Sequence[dict[str, Any]],
    seconds: float,
    identity: dict[str, Any],
    *,
    is_whole: bool,
) -> None:
    """Verify the completions, compute the metrics, and write the evaluation folder."""
    plan, settings = evaluation.plan, evaluation.settings
    rows = [row for row in evaluation.rows for _ in range(plan.k)]
    samples = [
        verified(plan.task, row, problem=place // plan.k, sample=place % plan.k, **completion)
        for place, (row, completion) in enumerate(zip(rows, completions, strict=True))
    ]
    num_tokens = sum(sample.num_completion_tokens for sample in samples)
    summary = {
        "schema": 1,
        "name": (settings.name or plan.location.name),
        **identity,
        "num_problems": len(evaluation.rows),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(num_tokens / max(seconds, 1e-9), 1) if is_whole else None,
        "num_completion_tokens": num_tokens,
        "batch_size": settings.batch_size,
        "device": device(),
        "dtype": "float32" if device() == "cpu" else plan.dtype,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "metrics": {name: e.as_dict() for name, e in scores.metrics(samples, task=plan.task).items()},
    }
    scores.write(plan.folder, summary=summary, samples=samples)


def _refuse_others_samples(evaluation: Prepared) -> None:
    """Refuse to overwrite samples of another length, engine or wording unasked. Raises: ValueError."""
    folder = evaluation.plan.folder
    if evaluation.settings.overwrite or not (folder / scores.SUMMARY).is_file():
        return
    before = scores.read_summary(folder)
    names = [name for name in ("max_new_tokens", "engine", "prompts_sha256") if name in before]
    refuse_changed(folder, before, evaluation.identity, names=names)


def _is_complete(folder: Path, identity: dict[str, Any]) -> bool:
    """True if `folder` holds exactly this evaluation, whole."""
    if not (folder / scores.SUMMARY).is_file() or not (folder / scores.SAMPLES).is_file():
        return False
    before = {"stop": [], **scores.read_summary(folder)}
    return all(before.get(name) == value for name, value in json.loads(json.dumps(identity)).items())


def _tidy(folder: Path) -> None:
    """Remove the leftovers of a process that was killed after it wrote the summary."""
    if (folder / unfinished.FOLDER).exists() or (folder / "run.lock").exists():
        with locked(folder):
            unfinished.clear(folder)


def device() -> str:
    """Name of the device that the model runs on. Even greedy completions depend on it, by rounding."""
    import torch

    from tinyzero_trl.config import has_gpu

    return torch.cuda.get_device_name() if has_gpu() else "cpu"
