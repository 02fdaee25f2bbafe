"""Errors and cost of the verdicts on mathematical answers; prints Markdown.

    python docs/benchmarks/math_verifier.py ../shared/data             # ten minutes on one core
    python docs/benchmarks/math_verifier.py ../shared/data --every 8   # every 8th gold is rewritten: half a minute

Sources: golds boxed as they are; golds rewritten by rules that keep their value, and by rules that change it (written here, apart
from the verifier); model outputs that others labelled; answers made to hang. `--cases file.jsonl` adds {"gold", "response",
"is_correct"} of your own.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from tinyzero_trl.task import Outcome
from tinyzero_trl.tasks.math import workers
from tinyzero_trl.tasks.math.verdict import verify

FILES = {
    "MATH train": "math_train_7k.jsonl",
    "AIME 1983-2023": "aime_1983_2023.jsonl",
    "GSM8K train": "gsm8k_train.jsonl",
}
"""The golds in the folder `math`."""
BOMBS = (
    *(
        "(9!)!!+2",
        "9^{9^{9}}",
        "2^{2^{40}}",
        "10**10**10",
        "((10^{6})!)!+2",
        "(x+y+z)^{200}",
        "x=3^{99999}",
        "(1+x)^{5000}",
    ),
    *(
        r"\binom{20000}{10000}",
        r"\sum_{k=1}^{1000000} k^k",
        r"\int_0^1 \sin(x^x)dx",
        r"\sqrt[1000000007]{2^{1000000007}}",
    ),
    *(
        r"\prod_{k=1}^{9999} k!",
        r"\gcd(2^{9999},3^{9999})",
        r"\frac{" * 11 + "1" + "}{2}" * 11,
        "1+" * 450 + "1",
        "|" * 40 + "1",
    ),
    *(
        "9" * 90 + "!",
        "x^" * 200 + "x",
        r"\begin{pmatrix}" + "a & " * 200 + r"b\end{pmatrix}",
        ",".join(map(str, range(200))),
    ),
)


@dataclass
class Source:
    """Verdicts on one kind of response."""

    num: int = 0
    num_right: int = 0
    num_by_text: int = 0
    num_undecided: int = 0
    false_accepts: list[str] = field(default_factory=list)
    false_rejects: list[str] = field(default_factory=list)
    text_seconds: list[float] = field(default_factory=list)
    sympy_seconds: list[float] = field(default_factory=list)


def boxed(answer: str) -> str:
    return f"<think>Let me see.</think> The answer is $\\boxed{{{answer}}}$."


def golds(folder: Path, name: str, every: int) -> list[str]:
    rows = [json.loads(line) for line in (folder / "math" / name).read_text(encoding="utf-8").splitlines()]
    return [row["answer"].split("####")[-1].strip() for row in rows][::every]


def number_of(gold: str) -> Fraction | None:
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", gold.replace("\\!", ""))
    if match := re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", text):
        return Fraction(int(match[1] + match[2]), int(match[3]))
    return Fraction(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None


def rewritten(gold: str) -> Iterator[str]:
    """The same answer, otherwise."""
    yield f" {gold} "
    yield f"${gold}$"
    yield rf"\left({gold}\right)" if not re.search(r"[,;=]|\\text|\\%|\\cup|[A-Za-z]{2}\)?$|_", gold) else gold
    yield gold.replace(r"\frac", r"\dfrac").replace(r"\left", "").replace(r"\right", "")
    yield re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", gold)
    yield re.sub(r",\s*", r" ,\\; ", gold) if re.search(r"[(\[]", gold) else gold
    value = number_of(gold)
    if value is not None:
        yield f"x = {gold}"
        yield rf"{gold}\text{{ units}}"
        yield rf"\frac{{{3 * value.numerator}}}{{{3 * value.denominator}}}"
        yield f"{value.numerator}/{value.denominator}"
        yield rf"{value.numerator - value.denominator}/{value.denominator} + 1"
        if value.denominator == 1:
            yield f"{value.numerator:,}"
            yield f"{value.numerator}.00"
            yield rf"{value.numerator} \cdot 1"
        elif all(prime in (2, 5) for prime in range(2, 60) if value.denominator % prime == 0 and prime < 11):
            decimal = f"{float(value):.10g}"
            if Fraction(decimal) == value:
                yield decimal
    elif re.fullmatch(r"[-+ 0-9a-z^*(){}]*|(?:\\sqrt|\\pi|\\frac|[-+ 0-9{}])*", gold) and not re.fullmatch(
        r"[a-z ]*", gold
    ):
        yield f"{gold} + 0"
        yield f"1 + {gold} - 1"


def changed(gold: str) -> Iterator[str]:
    """Another answer, nearly the same."""
    value = number_of(gold)
    if value is not None:
        for other in (value + 1, -value, value * 10, value + Fraction(1, 1000), 1 / value if value else Fraction(1)):
            if other != value:
                yield rf"\frac{{{other.numerator}}}{{{other.denominator}}}" if other.denominator > 1 else str(other)
        yield rf"{gold} \text{{ or }} {value + 1}"
        yield f"{gold} = {value + 1}"
        if value != 0:
            yield f"{gold}t"
        if len(gold) > 1 and len(gold) != 4 and gold.isdigit():
            yield f"{gold[0]},{gold[1:]}"
            yield f"{gold[0]}{{,}}{gold[1:]}"
        return
    if interval := re.fullmatch(r"([(\[])([^][(),]+),([^][(),]+)([)\]])", gold):
        opening, low, high, closing = interval.groups()
        yield f"{'[' if opening == '(' else '('}{low},{high}{closing}"
        yield f"{low} {'<' if opening == '[' else '<='} x {'<' if closing == ')' else '<='} {high}"
    digits = [match.start() for match in re.finditer(r"\d", gold)]
    if digits and gold[digits[-1]] != "0" and not re.search(r"text|\\approx|:", gold):
        at = digits[-1]
        yield gold[:at] + str((int(gold[at]) + 1) % 10) + gold[at + 1 :]
    if re.fullmatch(r"(?:\\sqrt|\\pi|\\frac|[+ 0-9{}])*", gold) and not gold.startswith("0"):
        yield f"-({gold})"
        yield f"{gold} + 1"


def judge(source: Source, gold: str, response: str, is_right: bool) -> None:
    before = sum(workers.counts.values())
    start = time.perf_counter()
    outcome = verify(response, answer=gold).outcome
    seconds = time.perf_counter() - start
    is_by_text = sum(workers.counts.values()) == before
    source.num += 1
    source.num_right += is_right
    source.num_undecided += outcome is Outcome.undecided
    source.num_by_text += is_by_text
    (source.text_seconds if is_by_text else source.sympy_seconds).append(seconds)
    is_correct = outcome is Outcome.correct
    if is_correct != is_right:
        shown = f"`{gold}` | `{response[-120:]!r}`"
        (source.false_accepts if is_correct else source.false_rejects).append(shown)


def mean_us(seconds: list[float]) -> str:
    return f"{sum(seconds) / len(seconds) * 1e6:,.0f}" if seconds else "-"


def share(num: int, of: int) -> str:
    return f"{num} of {of} ({num / of:.2%})" if of else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--every", type=int, default=1, help="use every n-th gold for what is rewritten and changed")
    parser.add_argument("--cases", type=Path, nargs="*", default=[])
    parser.add_argument("--show", type=int, default=0, help="disagreements shown of each source")
    args = parser.parse_args()

    workers.compare("x+1", "1+x")  # the workers start here and not in the first verdict
    sources: dict[str, Source] = {}
    for name, file in FILES.items():
        source = sources[f"{name}, golds as they are"] = Source()
        for gold in golds(args.folder, file, 1):
            judge(source, gold, boxed(gold), True)
    for name, file in FILES.items():
        right, wrong = Source(), Source()
        for gold in dict.fromkeys(golds(args.folder, file, args.every)):
            for answer in dict.fromkeys(rewritten(gold)):
                judge(right, gold, boxed(answer), True)
            for answer in changed(gold):
                judge(wrong, gold, boxed(answer), False)
        sources[f"{name}, golds rewritten"], sources[f"{name}, golds changed"] = right, wrong
    cases = {"GSM8K, outputs of OpenAI's 6B and 175B models": args.folder / "rollouts" / "gsm8k_openai_1600.jsonl"}
    for name, path in {**cases, **{path.stem: path for path in args.cases}}.items():
        source = sources[name] = Source()
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            judge(source, row["gold"], row.get("completion", row.get("response")), row["is_correct"])
    hostile = sources["made to hang"] = Source()
    for bomb in BOMBS:
        judge(hostile, "12", boxed(bomb), False)

    print(
        "| source | n | false accepts | false rejects | undecided | text decided | us, text | us, sympy | longest, ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, source in sources.items():
        accepts = share(len(source.false_accepts), source.num - source.num_right)
        rejects = share(len(source.false_rejects), source.num_right)
        longest = max(source.text_seconds + source.sympy_seconds) * 1000
        decided = f"{source.num_by_text / source.num:.1%}"
        costs = f"{mean_us(source.text_seconds)} | {mean_us(source.sympy_seconds)} | {longest:,.0f}"
        print(f"| {name} | {source.num:,} | {accepts} | {rejects} | {source.num_undecided} | {decided} | {costs} |")
    print(f"\nComparisons in workers: {dict(workers.counts)}.")
    print(f"\nOverhead: {overhead()}")
    for name, source in sources.items():
        for kind, found in (("accept", source.false_accepts), ("reject", source.false_rejects)):
            for shown in found[:: max(len(found) // args.show, 1)][: args.show] if args.show else []:
                print(f"- false {kind}, {name}: {shown}")
    workers.workers.close()


def overhead() -> str:
    """The overhead of a worker on top of the comparison itself, for a pair whose two sides it has parsed before."""
    from tinyzero_trl.tasks.math.equivalence import compare as compare_here

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    pairs = [("x+1", "1+x")] * 200
    for pair in pairs:
        workers.workers.compare(*pair)
        compare_here(*pair)
    start = time.perf_counter()
    for pair in pairs:
        workers.workers.compare(*pair)
    there = time.perf_counter() - start
    start = time.perf_counter()
    for pair in pairs:
        compare_here(*pair)
    here = time.perf_counter() - start
    start = time.perf_counter()
    workers.Workers().compare("x", "1*x")
    first = time.perf_counter() - start
    return f"{there / 200 * 1e6:,.0f} us a comparison in a worker, {here / 200 * 1e6:,.0f} us in this process; first comparison of a new pool {first:.2f} s."


if __name__ == "__main__":
    main()
