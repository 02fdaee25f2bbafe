"""Verdicts on labelled answers by kind, of this version and of another one in the same run, and what they cost; prints Markdown.

    git worktree add /tmp/before ae9133f
    python docs/benchmarks/math_kinds.py tests/tasks/math_cases.py ../shared/data/verdicts/math_cases.jsonl --before /tmp/before/src

A file of cases has lines of {"gold", "response", "label": "right" or "wrong" (or "is_correct"), "kind" (else the file is one kind)}, or is
`tests/tasks/math_cases.py`. Each version judges all cases in a process of its own, `--rounds` times in turn; of the times of one case the least counts, by
the clock, as a trainer waits for it. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

THIS = Path(__file__).parents[2] / "src"


def cases_of(path: Path) -> list[dict[str, Any]]:
    """[{"kind", "gold", "response", "is_right"}] of a file."""
    if path.suffix == ".py":
        tables = runpy.run_path(str(path))
        return [
            {"kind": kind, "gold": gold, "response": response_of(table, answer), "is_right": label == "right"}
            for table in ("BOXED", "TEXTS")
            for kind, labels in tables[table].items()
            for label, golds in labels.items()
            for gold, answers in golds.items()
            for answer in answers
        ]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {
            "kind": row.get("kind", path.stem) if "label" in row else path.stem,
            "gold": row["gold"],
            "response": row["response"] if "response" in row else row["completion"],
            "is_right": row["is_correct"] if "is_correct" in row else row["label"] == "right",
        }
        for row in rows
    ]


def response_of(table: str, answer: str) -> str:
    return f"\\boxed{{{answer}}}" if table == "BOXED" else answer.replace("⏎", "\n")


def judge() -> None:
    """Judges the cases of the standard input with the version on the path; prints [is_correct, microseconds] of each."""
    from tinyzero_trl.task import Outcome
    from tinyzero_trl.tasks.math import workers
    from tinyzero_trl.tasks.math.verdict import verify

    found = []
    cases = json.load(sys.stdin)
    workers.compare("x+1", "1+x")  # the workers start here and not in the first verdict
    for case in cases:
        start = time.perf_counter()
        outcome = verify(case["response"], answer=case["gold"]).outcome
        found.append((outcome is Outcome.correct, (time.perf_counter() - start) * 1e6))
    workers.workers.close()
    json.dump(found, sys.stdout)


def judged(source: Path, cases: list[dict[str, Any]]) -> list[tuple[bool, float]]:
    run = subprocess.run(
        [sys.executable, __file__, "--judge"],
        input=json.dumps(cases),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    return [(is_correct, microseconds) for is_correct, microseconds in json.loads(run.stdout)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--before", type=Path, help="the src folder of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="print the cases that this version judges otherwise")
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.judge:
        judge()
        return
    versions = {"before": args.before, "now": THIS} if args.before else {"now": THIS}
    for path in args.files:
        cases = cases_of(path)
        rounds: dict[str, list[list[tuple[bool, float]]]] = {name: [] for name in versions}
        for _ in range(args.rounds):
            for name, source in versions.items():
                rounds[name].append(judged(source, cases))
        print(f"\n`{path.name}`, false accepts and false rejects:\n")
        print("| kind | wrong | right |" + "".join(f" {name}: accepts | {name}: rejects |" for name in versions))
        print("| --- | --- | --- |" + " --- | --- |" * len(versions))
        kinds = list(dict.fromkeys(case["kind"] for case in cases))
        for kind in [*kinds, "all"] if len(kinds) > 1 else kinds:
            chosen = [index for index, case in enumerate(cases) if kind in (case["kind"], "all")]
            num_right = sum(cases[index]["is_right"] for index in chosen)
            cells = [f"{len(chosen) - num_right:,}", f"{num_right:,}"]
            for name in versions:
                first = rounds[name][0]
                cells.append(str(sum(first[index][0] and not cases[index]["is_right"] for index in chosen)))
                cells.append(str(sum(not first[index][0] and cases[index]["is_right"] for index in chosen)))
            print(f"| {kind} | {' | '.join(cells)} |")
        print()
        for name in versions:
            least = [min(times) for times in zip(*([us for _, us in found] for found in rounds[name]), strict=True)]
            changing = sum(len({found[index][0] for found in rounds[name]}) > 1 for index in range(len(cases)))
            print(
                f"- {name}: {statistics.median(least):,.0f} us a verdict in the median, {statistics.fmean(least):,.0f} in the mean, {max(least):,.0f} at worst; "
                f"{changing} verdicts differ between the {args.rounds} rounds"
            )
        if args.show:
            for case, (is_correct, _) in zip(cases, rounds["now"][0], strict=True):
                if is_correct is not case["is_right"]:
                    print(
                        f"- false {'accept' if is_correct else 'reject'}: `{case['gold'][-80:]}` | `{case['response'][-120:]!r}`"
                    )


if __name__ == "__main__":
    main()
