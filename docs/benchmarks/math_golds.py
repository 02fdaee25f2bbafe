"""Golds judged without the help of their own text: each read by sympy alone, or as the answer to another; prints Markdown.

python docs/benchmarks/math_golds.py ../shared/data                # which golds sympy reads, a quarter of a minute on one core
python docs/benchmarks/math_golds.py ../shared/data --pairs 6000   # instead: golds as answers to others, a minute
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from pathlib import Path

from math_verifier import FILES, boxed, golds, share

from tinyzero_trl.task import Outcome
from tinyzero_trl.tasks.math import workers
from tinyzero_trl.tasks.math.normal_form import form_of
from tinyzero_trl.tasks.math.verdict import is_beyond, sources, verify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="read every n-th gold")
    parser.add_argument(
        "--show", type=int, default=0, help="golds of each source that are shown, of those sympy does not read"
    )
    parser.add_argument("--pairs", type=int, default=0, help="answer so many golds, drawn at random, with other golds")
    args = parser.parse_args()
    workers.compare("x+1", "1+x")  # the workers start here and not in the first comparison
    if args.pairs:
        cross([gold for file in FILES.values() for gold in golds(args.folder, file, 1)], num=args.pairs)
    else:
        read_all({name: golds(args.folder, file, args.every) for name, file in FILES.items()}, show=args.show)
    workers.workers.close()


def cross(texts: list[str], *, num: int) -> None:
    """Print which golds are right answers to another: of pairs in which one is no plain number, so that both paths are asked."""
    different = list(dict.fromkeys(texts))
    odd = [gold for gold in different if form_of(gold).value is None]
    draw = random.Random(0)
    outcomes: Counter[Outcome] = Counter()
    for _ in range(num):
        gold, other = draw.choice(odd), draw.choice(odd if draw.random() < 0.7 else different)
        if form_of(gold).text == form_of(other).text:
            continue
        outcome = verify(boxed(other), answer=gold).outcome
        outcomes[outcome] += 1
        if outcome in (Outcome.correct, Outcome.undecided):
            print(f"- {outcome}: gold `{gold}` | `{other}`")
    print(f"\n{sum(outcomes.values()):,} pairs: {dict(outcomes)}; in workers: {dict(workers.counts)}.")


def read_all(golds_by_source: dict[str, list[str]], *, show: int) -> None:
    """Print how many golds sympy alone, without the text, finds equal to themselves; a text that repeats is compared once."""
    print("| source | golds | different | equal to itself by sympy | not read | unequal | undecided | us |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, texts in golds_by_source.items():
        results: dict[str, str] = {}
        start = time.perf_counter()
        for gold in dict.fromkeys(texts):
            form = form_of(gold)
            try:
                is_read, is_equal = (False, False) if is_beyond(gold) else workers.compare(*sources(form, form))
                results[gold] = "equal" if is_equal else "unequal" if is_read else "not read"
            except workers.UndecidedError:
                results[gold] = "undecided"
        seconds = time.perf_counter() - start
        num = Counter(results[gold] for gold in texts)
        shares = " | ".join(str(num[kind]) for kind in ("not read", "unequal", "undecided"))
        us = seconds / len(results) * 1e6
        print(
            f"| {name} | {len(texts):,} | {len(results):,} | {share(num['equal'], len(texts))} | {shares} | {us:,.0f} |"
        )
        odd = [f"- {kind}, {name}: `{gold}`" for gold, kind in results.items() if kind != "equal"]
        print("\n".join(odd[:: max(len(odd) // show, 1)][:show] if show else []))


if __name__ == "__main__":
    main()
