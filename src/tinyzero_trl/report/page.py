"""Writing report.html: the facts and tables of a run, filled into the template together with its charts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinyzero_trl import storage
from tinyzero_trl.installation import PACKAGE
from tinyzero_trl.report.benchmarks import read_benchmarks
from tinyzero_trl.report.charts import OUTCOMES, charts
from tinyzero_trl.report.run_files import RunFiles, metric, read_run

ASSETS = PACKAGE / "report" / "assets"
BEHAVIOURS = {
    "attempts/mean": "Attempts per response",
    "verified/share": "Answers verified in the thought",
    "true_values/share": "Attempts calculated correctly",
    "length/mean": "Tokens per response",
}
"""Metrics of the table of behaviour, and their labels."""


def write_report(run_folder: Path | str) -> Path:
    """Path of report.html, written whole from the files of `run_folder`. The page itself lists what is missing there.

    Raises: ValueError if there is no such folder.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    files = read_run(Path(run_folder))
    benchmarks = read_benchmarks(files.folder, missing=files.missing)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "marked": marked, "words": lambda text: str(text).replace("_", " ")}
    environment.globals["percent"] = percent
    environment.globals["asset"] = lambda name: (ASSETS / name).read_text(encoding="utf-8")
    page = environment.get_template("report.html.jinja").render(
        files=files,
        plotly=get_plotlyjs(),
        charts=charts(files),
        facts=facts(files),
        base=metric(files.base, "pass@1"),
        trained=metric(files.trained, "pass@1"),
        changes={
            "Behaviour": changes(files, BEHAVIOURS),
            "Accuracy by difficulty": changes(files, difficulty_labels(files)),
            "Where responses end": changes(files, {f"outcome/{name}": name.replace("_", " ") for name in OUTCOMES}),
        },
        benchmarks=benchmarks,
        temperature=sampling(files),
        seconds=seconds_by_part(files),
        config=_yaml(files.run),
        outcomes=OUTCOMES,
    )
    target = files.folder / "report.html"
    storage.write_text(target, page)
    return target


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """The run in a few numbers: labels and figures."""
    seconds = max((float(line.get("seconds", 0)) for line in files.train), default=0.0)
    tokens = max((float(line.get("num_tokens", 0)) for line in files.train), default=0.0)
    speeds = [line["tokens_per_second"] for line in files.train if "tokens_per_second" in line]
    known = [
        ("training steps", f"{files.num_steps:,}" if files.num_steps else ""),
        ("minutes of training", f"{seconds / 60:.1f}" if seconds else ""),
        ("tokens read and written", short(tokens) if tokens else ""),
        ("tokens generated per second", short(sorted(speeds)[len(speeds) // 2]) if speeds else ""),
        ("held-out problems", f"{files.trained['num_problems']:,}" if files.trained else ""),
    ]
    return [(label, value) for label, value in known if value]


def changes(files: RunFiles, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of metrics before and after training: label, values, top of the scale of both, and the function that prints them."""
    rows = []
    for key, label in labels.items():
        before, after = (metric(summary, key) for summary in (files.base, files.trained))
        known = [estimate for estimate in (before, after) if estimate]
        if any(estimate.value for estimate in known):
            is_share = key.startswith(("outcome/", "pass@")) or key.endswith("/share")
            top = 1.0 if is_share else 1.15 * max(estimate.high for estimate in known)
            show = percent if is_share else plain
            rows.append({"label": label, "before": before, "after": after, "top": top, "show": show})
    return rows


def sampling(files: RunFiles) -> str:
    """The sampling of the held-out responses, in words."""
    summary = files.trained or files.base or {}
    temperature, k = summary.get("temperature"), summary.get("k", 1)
    how = "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}" if temperature else "sampled"
    return f"{how}, {'one response' if k == 1 else f'{k} responses'} each"


def difficulty_labels(files: RunFiles) -> dict[str, str]:
    """Metric and label of each difficulty of the problems that were evaluated."""
    metrics = [*(files.base or {}).get("metrics", {}), *(files.trained or {}).get("metrics", {})]
    return {name: name.removeprefix("pass@1/") for name in sorted(set(metrics)) if name.startswith("pass@1/")}


def seconds_by_part(files: RunFiles) -> list[tuple[str, float]]:
    """Seconds of the run by part: generation, scoring, training, and other (loading, saving, evaluating)."""
    spent = dict.fromkeys(("generation", "scoring", "training"), 0.0)
    before = 0
    for line in files.train:
        # A logged number is the mean over the steps since the previous line.
        for name in spent:
            spent[name] += float(line.get(f"seconds/{name}", 0.0)) * (line["step"] - before)
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
    """A number with one decimal, or without decimals from 100 on."""
    return f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def short(number: float) -> str:
    """12,345,678 -> 12.3 M"""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{1 if number < 100 * size else 0}f}\u202f{letter}"
    return f"{number:.0f}"


def marked(text: str) -> Any:
    """A model's text as safe HTML: escaped first, then tags and lines that end in yes or no are wrapped in spans."""
    from markupsafe import Markup, escape

    safe = str(escape(text))
    safe = re.sub(r"&lt;/?(?:think|answer)&gt;", r'<span class="tag">\g<0></span>', safe)
    safe = re.sub(r"(?m)^[^<\n]*, no$", r'<span class="judged-no">\g<0></span>', safe)
    safe = re.sub(r"(?m)^[^<\n]*, yes$", r'<span class="judged-yes">\g<0></span>', safe)
    return Markup(safe)


def _yaml(content: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100) if content else ""
