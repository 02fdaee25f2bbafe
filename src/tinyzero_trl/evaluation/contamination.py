"""Measuring how many problems of a benchmark a model knows by heart: given the first part of a text, it completes the rest verbatim."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyzero_trl import storage
from tinyzero_trl.evaluation import benchmarks
from tinyzero_trl.evaluation.benchmarks import Chosen
from tinyzero_trl.intervals import Estimate, share

SHOWN = 0.6
"""Share of a problem's text that the model sees."""
SPARE_TOKENS = 8
"""Tokens allowed beyond those of the rest, because a model may split the same text into more tokens."""


@dataclass(frozen=True)
class Probe:
    """One problem, cut in two, and the model's completion."""

    shown: str
    """First part of the problem, which the model sees."""
    rest: str
    """Second part of the problem."""
    completion: str
    """Text that the model generated after the first part."""
    is_verbatim: bool
    """True if the completion begins with the rest, apart from blanks."""


def cut(problem: str, shown: float = SHOWN) -> tuple[str, str]:
    """The first part of a problem, with the share `shown` of its words, and the rest. No word is cut.

    >>> cut("How many clips did Natalia sell in April and May?")
    ('How many clips did Natalia sell', ' in April and May?')
    """
    ends, at = [], 0
    for word in problem.split():
        at = problem.index(word, at) + len(word)
        ends.append(at)
    if len(ends) < 2:
        return problem, ""
    place = ends[min(max(round(shown * len(ends)), 1), len(ends) - 1) - 1]
    return problem[:place], problem[place:]


def is_verbatim(completion: str, rest: str) -> bool:
    """True if a completion begins with the rest of the problem, apart from blanks. Any text may follow."""
    wanted = "".join(rest.split())
    return bool(wanted) and "".join(completion.split()).startswith(wanted)


def probe(model_path: str, chosen: Sequence[Chosen], *, n: int | None, seed: int, engine: str, output: Path) -> Path:
    """Path of contamination.json, written to `output`: the share of problems completed verbatim in each benchmark, and every probe.

    Decoding is greedy, without a template, from the first 60 % of the words. If the share is above a few percent, a gain on this
    benchmark may be memory and not reasoning. A benchmark that is newer than the model, or made up, is the control.
    Source: Wu et al. (arXiv 2507.10532), sec. 3: with 60 % of the question Qwen2.5-Math-7B completes 54.6 % of MATH-500 exactly,
    Llama-3.1-8B 3.8 %, and no model any of LiveMathBench. They cut between characters; we cut between words.

    Raises: ValueError or FileNotFoundError of one line, before weights are read.
    """
    from tinyzero_trl.evaluation.completions import Loading, checked_model, context_of, opened
    from tinyzero_trl.models import locate

    location = locate(model_path)
    rows = {one.name: benchmarks.load(one, num_rows=n, seed=seed) for one in chosen}
    model = checked_model(location)
    tokenizer = model.tokenizer
    cuts = {name: [cut(row["problem"]) for row in of_name] for name, of_name in rows.items()}
    ids = {name: [tokenizer(shown)["input_ids"] for shown, _ in pairs] for name, pairs in cuts.items()}
    rooms = {
        name: max(len(tokenizer(rest, add_special_tokens=False)["input_ids"]) for _, rest in pairs) + SPARE_TOKENS
        for name, pairs in cuts.items()
    }
    length = max(max(map(len, ids[name])) + rooms[name] for name in ids)
    if (context := context_of(model)) is not None and length > context:
        raise ValueError(
            f"the longest problem has {length} tokens and {location.shown} takes {context}: it does not fit"
        )
    found: dict[str, Any] = {}
    with opened(engine, Loading(model, max_length=length)) as draw:
        for name, pairs in cuts.items():
            completions = draw(
                prompt_ids=ids[name], seeds=[0] * len(pairs), max_new_tokens=rooms[name], temperature=0.0
            )
            probes = [
                Probe(shown, rest, one["completion"], is_verbatim(one["completion"], rest))
                for (shown, rest), one in zip(pairs, completions, strict=True)
            ]
            estimate = share([float(one.is_verbatim) for one in probes])
            found[name] = {"verbatim": estimate.as_dict(), "probes": [asdict(one) for one in probes]}
    output.mkdir(parents=True, exist_ok=True)
    content = {"model": model_path, "shown": SHOWN, "benchmarks": found}
    storage.write_text(output / "contamination.json", json.dumps(content, indent=1) + "\n")
    return output / "contamination.json"


def show(path: Path) -> None:
    """Print the share of problems completed verbatim in each benchmark."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, values in content["benchmarks"].items():
        e = Estimate(**values["verbatim"])
        print(
            f"{name}: {content['model']} completes {e.value:.1%} of {e.n} problems verbatim from {content['shown']:.0%} "
            f"of the text [{e.low:.1%}, {e.high:.1%}]"
        )
    print(f"Written to {path}")
