"""A run folder -> report.html: one file that needs no network and shows what was learned, how, and on what."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyzero_trl.report_data import RunFiles, read_run
from tinyzero_trl.statistics import Estimate

ASSETS = Path(__file__).parent / "report_assets"
OUTCOMES = ("correct", "wrong_value", "wrong_numbers", "illegal_expression", "bad_format", "no_answer", "truncated")
"""From the bottom of the stack to its top."""
BEHAVIOURS = {
    "attempts/mean": "Attempts per response",
    "verified/share": "Answers verified in the thought",
    "length/mean": "Tokens per response",
    "outcome/truncated": "Cut off by the token limit",
}
Trace = dict[str, Any]


def write_report(run_folder: Path | str) -> Path:
    """Path of report.html, written whole from the files of `run_folder`; what is missing there is said in the page.

    Raises: ValueError where there is no such folder.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    files = read_run(Path(run_folder))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "marked": marked, "words": lambda text: str(text).replace("_", " ")}
    environment.globals["asset"] = lambda name: (ASSETS / name).read_text(encoding="utf-8")
    page = environment.get_template("report.html.jinja").render(
        files=files,
        plotly=get_plotlyjs(),
        charts=charts(files),
        facts=facts(files),
        base=_pass_rate(files.base),
        trained=_pass_rate(files.trained),
        behaviours=behaviours(files),
        difficulties=difficulties(files),
        seconds=seconds_by_part(files),
        config=_yaml(files.run),
        outcomes=OUTCOMES,
    )
    target = files.folder / "report.html"
    part = target.with_suffix(".html.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, target)
    return target


def charts(files: RunFiles) -> list[dict[str, Any]]:
    """Plotly traces by chart. A colour `$name/0.2` is the page's CSS variable --name at that opacity, set when drawn."""
    found = [_accuracy(files), _outcome_shares(files)]
    lines = {
        "reward": ("Reward", "mean of the batch", {"reward": ("reward", "accent")}, ""),
        "length": (
            "Length",
            "tokens per response",
            {"length/correct": ("right", "correct"), "length/wrong": ("wrong", "wrong_value")},
            "",
        ),
        "entropy": ("Entropy", "of the next token, in nats", {"entropy": ("entropy", "plum")}, ""),
        "speed": ("Speed", "tokens generated per second", {"tokens_per_second": ("tokens per second", "blue")}, ""),
        "attempts": ("Attempts", "per response", {"attempts/mean": ("attempts", "accent")}, ""),
        "verified": (
            "Verified",
            "share of answers worked out in the thought",
            {"verified/share": ("verified", "accent")},
            ".0%",
        ),
    }
    for name, (title, note, series, tick_format) in lines.items():
        traces, legend = [], []
        for key, (label, colour) in series.items():
            x, y = _series(files.train, key)
            if x:
                traces += _line(x, y, label, colour)
                legend.append((label, colour))
        chart = {
            "id": name,
            "title": title,
            "note": note,
            "traces": traces,
            "legend": legend,
            "format": tick_format,
            "wide": False,
        }
        found.append(chart)
    return [chart for chart in found if chart["traces"]]


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """The run in a few numbers: label and figure."""
    seconds = max((float(line.get("seconds", 0)) for line in files.train), default=0.0)
    tokens = max((float(line.get("num_tokens", 0)) for line in files.train), default=0.0)
    speeds = [line["tokens_per_second"] for line in files.train if _is_number(line.get("tokens_per_second"))]
    known = [
        ("training steps", f"{files.num_steps:,}" if files.num_steps else ""),
        ("minutes of training", f"{seconds / 60:.1f}" if seconds else ""),
        ("tokens read and written", short(tokens) if tokens else ""),
        ("tokens generated per second", short(sorted(speeds)[len(speeds) // 2]) if speeds else ""),
        ("held-out problems", f"{files.trained['num_problems']:,}" if files.trained else ""),
    ]
    return [(label, value) for label, value in known if value]


def behaviours(files: RunFiles) -> list[dict[str, Any]]:
    """What the model does, before and after: each with its interval, as text and as places on a common scale."""
    rows = []
    for key, label in BEHAVIOURS.items():
        before, after = (_metric(summary, key) for summary in (files.base, files.trained))
        known = [estimate for estimate in (before, after) if estimate]
        if known:
            is_share = key.startswith("outcome/") or key.endswith("/share")
            top = 1.0 if is_share else 1.15 * max(estimate.high for estimate in known) or 1.0
            show = percent if is_share else plain
            rows.append({"label": label, "before": before, "after": after, "top": top, "show": show})
    return rows


def difficulties(files: RunFiles) -> list[tuple[str, Estimate | None, Estimate | None]]:
    """Label, base and trained pass@1 of each kind of problem."""
    labels = {
        name.removeprefix("pass@1/")
        for summary in (files.base, files.trained)
        for name in (summary or {}).get("metrics", {})
        if name.startswith("pass@1/")
    }
    return [
        (label, *(_metric(side, f"pass@1/{label}") for side in (files.base, files.trained))) for label in sorted(labels)
    ]


def seconds_by_part(files: RunFiles) -> list[tuple[str, float]]:
    """Seconds of the run spent generating, scoring, training, and on the rest (loading, saving, evaluating)."""
    spent = dict.fromkeys(("generation", "scoring", "training"), 0.0)
    before = 0
    for line in files.train:
        # A logged figure is the mean over the steps since the line before.
        for name in spent:
            value = line.get(f"seconds/{name}")
            spent[name] += float(value) * (line["step"] - before) if _is_number(value) else 0.0
        before = line["step"]
    if not any(spent.values()):
        return []
    total = max((float(line.get("seconds", 0)) for line in files.train), default=0.0)
    rest = max(0.0, total - sum(spent.values()))
    return [*spent.items(), ("other", rest)]


def percent(value: float, digits: int = 1) -> str:
    """0.4567 -> 45.7 %, with a narrow no-break space."""
    return f"{100 * value:.{digits}f}\u202f%"


def plain(value: float) -> str:
    """A figure in one decimal, or none from 100 on."""
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def short(number: float) -> str:
    """12,345,678 -> 12.3 M"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{1 if number < 100 * size else 0}f}\u202f{letter}"
    return f"{number:.0f}"


def marked(text: str) -> Any:
    """What a model wrote as safe HTML: escaped first, then tags and judged lines wrapped in spans."""
    from markupsafe import Markup, escape

    safe = str(escape(text))
    safe = re.sub(r"&lt;/?(?:think|answer)&gt;", r'<span class="tag">\g<0></span>', safe)
    safe = re.sub(r"(?m)^[^<\n]*, no$", r'<span class="judged-no">\g<0></span>', safe)
    safe = re.sub(r"(?m)^[^<\n]*, yes$", r'<span class="judged-yes">\g<0></span>', safe)
    return Markup(safe)


def _accuracy(files: RunFiles) -> dict[str, Any]:
    traces: list[Trace] = []
    legend = []
    if files.batches:
        x = [step for step, _ in files.batches]
        traces += _band(x, [e.low for _, e in files.batches], [e.high for _, e in files.batches], "accent")
        traces += _line(x, [e.value for _, e in files.batches], "training batch", "accent")
        legend.append(("training batch", "accent"))
    elif files.train:
        x, y = _series(files.train, "accuracy")
        traces += _line(x, y, "training batch", "accent") if x else []
        legend.append(("training batch", "accent"))
    held_out = list(files.checks)
    for summary, step in ((files.base, 0), (files.trained, files.num_steps)):
        if estimate := _pass_rate(summary):
            held_out.append((step, estimate))
    groups = [
        ("during training", files.checks, "ink", 5),
        ("base and trained", held_out[len(files.checks) :], "blue", 9),
    ]
    for name, points, colour, size in groups:
        if points:
            traces.append(_points(points, f"held out, {name}", colour, size))
            legend.append((f"held out, {name}", colour))
    note = "share of responses that are correct, with 95\u202f% intervals over problems"
    return {
        "id": "accuracy",
        "title": "Accuracy",
        "note": note,
        "traces": traces,
        "legend": legend,
        "format": ".0%",
        "wide": True,
    }


def _outcome_shares(files: RunFiles) -> dict[str, Any]:
    traces, legend = [], []
    for outcome in OUTCOMES:
        x, y = _series(files.train, f"outcomes/{outcome}")
        if not x or not any(y):
            continue
        name = outcome.replace("_", " ")
        line = {"width": 0, "color": f"${outcome}"}
        fill = f"${outcome}/0.85"
        traces.append(
            {
                "x": x,
                "y": _smooth(y),
                "name": name,
                "stackgroup": "all",
                "mode": "lines",
                "line": line,
                "fillcolor": fill,
                "hovertemplate": "%{y:.1%}",
            }
        )
        legend.append((name, outcome))
    note = "what became of the responses of each batch"
    return {
        "id": "outcomes",
        "title": "Outcomes",
        "note": note,
        "traces": traces,
        "legend": legend,
        "format": ".0%",
        "range": [0, 1],
        "wide": True,
    }


def _line(x: Sequence[float], y: Sequence[float], name: str, colour: str) -> list[Trace]:
    """Each step faint, their running mean on top."""
    faint = {"x": x, "y": y, "mode": "lines", "line": {"width": 1, "color": f"${colour}/0.35"}, "hoverinfo": "skip"}
    mean = {"x": x, "y": _smooth(y), "name": name, "mode": "lines", "line": {"width": 2.5, "color": f"${colour}"}}
    return [faint, mean]


def _band(x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> list[Trace]:
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    return [{"x": x, "y": low, **edge}, {"x": x, "y": high, **edge, "fill": "tonexty", "fillcolor": f"${colour}/0.13"}]


def _points(points: Sequence[tuple[int, Estimate]], name: str, colour: str, size: int) -> Trace:
    return {
        "x": [step for step, _ in points],
        "y": [e.value for _, e in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [e.high - e.value for _, e in points],
            "arrayminus": [e.value - e.low for _, e in points],
            "color": f"${colour}",
            "thickness": 1.5,
            "width": 3,
        },
        "mode": "markers",
        "name": name,
        "marker": {"size": size, "color": f"${colour}", "line": {"width": 1.5, "color": "$card"}},
    }


def _smooth(y: Sequence[float]) -> list[float]:
    """Centred running mean over about a fifteenth of the run."""
    reach = len(y) // 30
    windows = (y[max(0, i - reach) : i + reach + 1] for i in range(len(y)))
    return [math.fsum(window) / len(window) for window in windows]


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values, steps without a number left out."""
    known = [(int(line["step"]), float(line[key])) for line in lines if _is_number(line.get(key))]
    return [step for step, _ in known], [value for _, value in known]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _metric(summary: dict[str, Any] | None, key: str) -> Estimate | None:
    metric = (summary or {}).get("metrics", {}).get(key)
    return Estimate(**metric) if metric else None


def _pass_rate(summary: dict[str, Any] | None) -> Estimate | None:
    return _metric(summary, "pass@1")


def _yaml(content: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100) if content else ""
