"""One evaluation, ready to be answered: its problems, worded and tokenised; and the answering, which can be stopped at any moment."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from tinyzero_trl.evaluation import benchmarks, unfinished
from tinyzero_trl.evaluation.completions import Draw, fitted_rows, prompt_ids_of, room
from tinyzero_trl.evaluation.plan import Plan, Settings, request
from tinyzero_trl.models import Start, check_stop
from tinyzero_trl.task import Row, loaded, prompts, resolve

SHARD = {"transformers": 256, "server": 2048, "colocate": 2048}
"""Completions a stopped evaluation loses at most: a batch of our sampler's; of vLLM's more, for its last ones run alone."""


@dataclass(frozen=True)
class Work:
    """A plan with its problems."""

    plan: Plan
    settings: Settings
    rows: list[Row]
    prompt_ids: list[list[int]]
    max_new_tokens: int

    @property
    def num_samples(self) -> int:
        """k for each problem."""
        return len(self.rows) * self.plan.k

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt with its completion."""
        return max(map(len, self.prompt_ids)) + self.max_new_tokens

    @property
    def identity(self) -> dict[str, Any]:
        """What makes samples of two attempts samples of one evaluation, but for the weights."""
        texts = "\0".join(str(row["prompt"]) for row in self.rows)
        return {
            **request(self.plan, self.settings),
            "engine": self.settings.engine,
            "max_new_tokens": self.max_new_tokens,
            "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest(),
        }

    def said(self, *, num_known: int) -> str:
        """What is about to be done, in one line."""
        plan = self.plan
        what = self.settings.benchmark.name if self.settings.benchmark else plan.task.name
        how = "greedy" if plan.temperature == 0 else f"temperature {plan.temperature:g}, top-p {plan.top_p:g}"
        if self.settings.engine != "transformers":
            how += f", by vLLM ({self.settings.engine})"
        if plan.stop:
            how += f", stop at {' or '.join(map(repr, plan.stop))}"
        line = f"{what}: {len(self.rows)} problems x {plan.k}, format {plan.format}, {how}, up to {self.max_new_tokens} tokens"
        return line + (f"; {num_known} of {self.num_samples} are answered already" if num_known else "")


def rows_of(plan: Plan, settings: Settings) -> list[Row]:
    """The problems, worded: the same ones in the same order for the same source, n and seed.

    Raises: ValueError or FileNotFoundError with one line.
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


def work_of(plan: Plan, settings: Settings, rows: list[Row], model: Start) -> Work:
    """The plan with its problems tokenised. Raises: ValueError if a prompt leaves no room for a response."""
    check_stop(plan.stop, name="--stop", tokenizer=model.tokenizer)
    rows = fitted_rows(rows, model)
    prompt_ids = prompt_ids_of(model, rows, format_name=plan.format)
    return Work(plan, settings, rows, prompt_ids, room(plan, model, prompt_ids))


def completed(
    work: Work,
    known: dict[int, unfinished.Completion],
    draw: Draw | None,
    console: Any,
) -> tuple[list[unfinished.Completion], float]:
    """Every completion in order of problem and sample, and the seconds that those not known took; each is kept as it comes.

    A sample's seed is a function of the evaluation's, its problem and its number: stopped or not, the same are drawn.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tinyzero_trl.seeding import seed_of

    k, seconds = work.plan.k, 0.0
    missing = [place for place in range(work.num_samples) if place not in known]
    assert work.settings.engine is not None
    size = SHARD[work.settings.engine]
    if work.settings.engine == "transformers":
        size = work.settings.batch_size or size
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(
            f"Answering with {work.plan.location.shown}", total=work.num_samples, completed=len(known)
        )
        for start in range(0, len(missing), size):
            assert draw is not None
            places = missing[start : start + size]
            began = time.perf_counter()
            completions = draw(
                prompt_ids=[work.prompt_ids[place // k] for place in places],
                seeds=[seed_of(work.settings.seed, place // k, place % k) for place in places],
                max_new_tokens=work.max_new_tokens,
                temperature=work.plan.temperature,
                top_p=work.plan.top_p,
                on_progress=lambda done, _: progress.update(bar, advance=done),
            )
            seconds += time.perf_counter() - began
            unfinished.keep(work.plan.folder, places, completions)
            known.update(zip(places, completions, strict=True))
    return [known[place] for place in range(work.num_samples)], seconds


def device() -> str:
    """What the model ran on: greedy answers, too, depend on it (rounding)."""
    import torch

    from tinyzero_trl.config import has_gpu

    return torch.cuda.get_device_name() if has_gpu() else "cpu"
