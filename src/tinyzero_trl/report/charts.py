"""The curves of a report as plotly traces; the page adds colours and draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tinyzero_trl.intervals import Estimate
from tinyzero_trl.report.run_files import RunFiles, metric

OUTCOMES = (
    "correct",
    "wrong_value",
    "wrong_numbers",
    "illegal_expression",
    "bad_format",
    "no_answer",
    "truncated",
    "undecided",
)
"""Outcomes in the order of the stacked chart, from bottom to top."""
LINES = (
    ("reward", "Reward", "mean of the batch", "", [("reward", "reward", "accent")]),
    (
        *("length", "Length", "tokens per response", ""),
        [("length/correct", "right", "correct"), ("length/wrong", "wrong", "wrong_value")],
    ),
    ("entropy", "Entropy", "of the next token, in nats", "", [("entropy", "entropy", "plum")]),
    ("speed", "Speed", "tokens generated per second", "", [("tokens_per_second", "tokens per second", "blue")]),
    ("attempts", "Attempts", "per response", "", [("attempts/mean", "attempts", "accent")]),
    (
        *("verified", "Verified", "share of answers worked out in the thought", ".0%"),
        [("verified/share", "verified", "accent")],
    ),
)
"""Charts of plain lines: id, title, note, format of the ticks, and the lines: metric, label and colour."""
Trace = dict[str, Any]
"""One trace, as plotly.js takes it."""


def charts(files: RunFiles) -> list[dict[str, Any]]:
    """Charts that have data, with their traces.

    The page replaces a colour `$name/0.2` by its CSS variable --name at that opacity.
    """
    found = [_accuracy(files), _outcome_shares(files)]
    for name, title, note, tick_format, series in LINES:
        traces, legend = [], []
        for key, label, colour in series:
            x, y = _series(files.train, key)
            if x:
                traces += _line(x, y, label, colour)
                legend.append((label, colour))
        found.append(_chart(name, title, note, traces, legend, tick_format))
    return [chart for chart in found if chart["traces"]]


def _chart(
    name: str,
    title: str,
    note: str,
    traces: list[Trace],
    legend: list[tuple[str, str]],
    tick_format: str,
    *,
    is_wide: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A chart as the page takes it. legend: label and colour of each trace that it explains."""
    head = {"id": name, "title": title, "note": note}
    return {**head, "traces": traces, "legend": legend, "format": tick_format, "wide": is_wide, **more}


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
        if estimate := metric(summary, "pass@1"):
            held_out.append((step, estimate))
    groups = [
        ("during training", files.checks, "ink", 8),
        ("base and trained", held_out[len(files.checks) :], "blue", 10),
    ]
    for name, points, colour, size in groups:
        if points:
            traces.append(_points(points, f"held out, {name}", colour, size))
            legend.append((f"held out, {name}", colour))
    note = "share of responses that are correct, with 95\u202f% intervals over problems"
    return _chart("accuracy", "Accuracy", note, traces, legend, ".0%", is_wide=True)


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
    return _chart("outcomes", "Outcomes", note, traces, legend, ".0%", is_wide=True, range=[0, 1])


def _line(x: Sequence[float], y: Sequence[float], name: str, colour: str) -> list[Trace]:
    """Two traces: the value of each step, faint, and the running mean on top."""
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
    """Centred running mean, over about a fifteenth of the run."""
    reach = len(y) // 30
    windows = (y[max(0, i - reach) : i + reach + 1] for i in range(len(y)))
    return [math.fsum(window) / len(window) for window in windows]


def _series(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric, without steps that have no number."""
    known = [(int(line["step"]), float(line[key])) for line in lines if key in line]
    return [step for step, _ in known], [value for _, value in known]
