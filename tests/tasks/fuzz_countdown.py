"""A fuzzer of the Countdown verifier: `python tests/tasks/fuzz_countdown.py --num 1000000 --seed 0`.

Responses are honest ones, honest ones with mutations, noise over the grammar's alphabet, unicode look-alikes and
permutations of tags. Each is judged by the verifier and by `oracle`, which was written apart from it (regular expressions
for the structure, Python's own parser for the arithmetic, never `eval`), and the two must agree on outcome, value and
exactness. Prints what they disagree on, and the time the verifier takes.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import time
import warnings
from dataclasses import dataclass
from fractions import Fraction

from tinyzero_trl.answer import split_response
from tinyzero_trl.tasks.countdown import generate, solve, verify

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ENDINGS = ("", "", "", "\n", "</s>", "<|endoftext|>", "<|im_end|>\n", "<pad><pad>", " ok", "!", "<|im_start|>", "</s")
LOOKALIKES = "×÷−–⁄∕＋－＊／（）０１２３٠١٢߀²½①\u00a0\u2009\u200b\x00\x0b\x0c\ud800"
NOISE = "0123456789" * 2 + "+-*/()" * 4 + "  \n\t.,_=eExj%^#&|~<>\\'\"[]:!"
TRICKS = (
    *("9**9**9", "95**96**98", "2**3", "7//2", "7%2", "1.5", ".5*4", "3.5*2", "-(2-5)*3", "--1", "-1", "1--2", "+1", "01+2", "1_0", "0x1F", "1e3"),
    *("(1)(2)", "2(3)", "1/0", "0/0", "1/(2-2)", "", " ", "()", "1 2", "1 + 2 = 3", "x", "abs(3)", "I give up", "#", "[1]"),
    *("(" * 40 + "1" + ")" * 40, "(" * 300, "1+" * 127 + "1", "1+" * 200 + "1", "9" * 256, "9" * 257),
)  # fmt: skip


def oracle(response: str, nums: list[int], target: int, is_truncated: bool) -> tuple[str, Fraction | None, bool]:
    """(outcome, value, is_exact) by an independent reading of the same rules."""
    pieces = re.split("(<think>|</think>|<answer>|</answer>)", response)
    tags = [piece for piece in pieces if piece in TAGS]
    answer = None
    if tags.count("</think>") == 1:
        before, after = tags[: tags.index("</think>")], tags[tags.index("</think>") + 1 :]
        if before.count("<think>") <= 1 and after == ["<answer>", "</answer>"]:
            answer = pieces[len(pieces) - 3].strip(" \t\r\n")
    if answer is None:
        has_tag = "<answer>" in tags or "</answer>" in tags
        return ("truncated" if is_truncated else "bad_format" if has_tag else "no_answer"), None, False
    exact = re.fullmatch(
        r"[ \t\r\n]*<think>(?P<think>.*)</think>[ \t\r\n]*<answer>(?P<answer>.*)</answer>"
        r"([ \t\r\n]|</s>|<\|endoftext\|>|<\|im_end\|>|<pad>)*",
        response,
        flags=re.DOTALL,
    )
    is_exact = exact is not None and bool(exact["think"].strip(" \t\r\n")) and answer != ""
    value, literals = worth(answer)
    if value is None:
        return "illegal_expression", None, is_exact
    remaining = list(nums)
    for literal in literals:
        if literal not in remaining:
            return "wrong_numbers", value, is_exact
        remaining.remove(literal)
    if remaining:
        return "wrong_numbers", value, is_exact
    return ("correct" if value == Fraction(target) else "wrong_value"), value, is_exact


def worth(text: str) -> tuple[Fraction | None, list[int]]:
    """The exact value of `text` and its integers, by Python's parser and a strict walk; (None, []) outside the rules."""
    if len(text) > 256 or set(text) - set("0123456789+-*/() \t\r\n"):
        return None, []
    depth = deepest = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        deepest = max(deepest, depth)
    if deepest > 32 or "--" in "".join(text.split()):
        return None, []
    flat = re.sub(r"\s", " ", text).strip()
    literals: list[int] = []

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant):
            if type(node.value) is not int or ast.get_source_segment(flat, node) != str(node.value):
                raise ValueError
            literals.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -walk(node.operand)
        if not isinstance(node, ast.BinOp):
            raise ValueError
        left, right = walk(node.left), walk(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
        raise ValueError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return walk(ast.parse(flat, mode="eval").body), literals
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None, []


class Writer:
    """Responses to random problems: right, nearly right, and wild."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        rows = generate(draw, num_numbers=(3, 4), numbers=(1, 99), targets=(10, 100))
        self.problems = [
            (row["nums"], row["target"], solve(row["nums"], row["target"]))
            for row, _ in zip(rows, range(500), strict=False)
        ]

    def expression(self, nums: list[int], solution: str) -> str:
        """An answer: the solution, a random legal expression, a mutation of either, a trick or noise."""
        draw = self.draw
        kind = draw.random()
        if kind < 0.06:
            return draw.choice(TRICKS)
        if kind < 0.14:
            return "".join(draw.choices(NOISE, k=draw.randrange(20)))
        if kind < 0.55:
            text = solution
        else:
            terms = [str(number) for number in draw.sample(nums, len(nums))]
            if draw.random() < 0.2:
                terms[0] = str(draw.randrange(120))
            while len(terms) > 1:
                left = terms.pop(draw.randrange(len(terms)))
                at = draw.randrange(len(terms))
                blank = draw.choice(["", " ", "\n"])
                joined = f"{left}{blank}{draw.choice('+-*/')}{blank}{terms[at]}"
                terms[at] = f"({joined})" if draw.random() < 0.6 else joined
                if draw.random() < 0.2:
                    terms[at] = f"-{blank}{terms[at]}"
            text = terms[0]
        for _ in range(draw.choice((0, 0, 0, 1, 2))):
            text = self.mutated(text, NOISE + LOOKALIKES)
        return text

    def mutated(self, text: str, alphabet: str) -> str:
        """`text` with one character put in, taken out, replaced or doubled."""
        at = self.draw.randrange(len(text) + 1)
        match self.draw.randrange(4):
            case 0:
                return text[:at] + self.draw.choice(alphabet) + text[at:]
            case 1:
                return text[:at] + text[at + 1 :]
            case 2:
                return text[:at] + self.draw.choice(alphabet) + text[at + 1 :]
        return text[:at] + text[at : at + 1] * 2 + text[at + 1 :]

    def response(self, nums: list[int], solution: str) -> str:
        draw = self.draw
        thought = draw.choice(
            ["a", "", " \n", "48 - 17 = 31, no\n" * draw.randrange(8), solution, "<answer>1</answer>", "<"]
        )
        answer = self.expression(nums, solution)
        kind = draw.random()
        if kind < 0.15:
            texts = [thought, answer, solution, " ", "\n", "", "</s>"]
            return "".join(draw.choice(TAGS) + draw.choice(texts) for _ in range(draw.randrange(8)))
        pieces = [
            "<think>",
            thought,
            "</think>",
            draw.choice(["", "\n", " ", "\n\n", "So "]),
            "<answer>",
            answer,
            "</answer>",
        ]
        if kind < 0.25:
            at, other = draw.randrange(len(pieces)), draw.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif kind < 0.32:
            pieces.insert(draw.randrange(len(pieces)), draw.choice(TAGS))
        elif kind < 0.38:
            del pieces[draw.randrange(len(pieces))]
        text = "".join(pieces) + draw.choice(ENDINGS)
        if kind > 0.92:
            text = self.mutated(text, NOISE + LOOKALIKES)
        if kind > 0.98:
            text = text[: draw.randrange(len(text) + 1)]
        return text


@dataclass
class Result:
    """The findings of a run of the fuzzer."""

    num_by_outcome: dict[str, int]
    disagreements: list[tuple[str, list[int], int, object, object]]
    """(response, nums, target, the verifier's, the oracle's), the first twenty."""
    microseconds: list[float]
    """Processor seconds of each verdict, sorted."""

    def at(self, share: float) -> float:
        return self.microseconds[min(int(share * len(self.microseconds)), len(self.microseconds) - 1)]


def fuzz(num_responses: int, *, seed: int) -> Result:
    """Judges `num_responses` responses twice; whatever the verifier raises comes through."""
    writer = Writer(random.Random(f"fuzz {seed}"))
    num_by_outcome: dict[str, int] = {}
    disagreements = []
    microseconds = []
    for _ in range(num_responses):
        nums, target, solution = writer.draw.choice(writer.problems)
        response = writer.response(nums, solution)
        is_truncated = writer.draw.random() < 0.1
        start = time.thread_time()
        verdict = verify(response, nums=nums, target=target, is_truncated=is_truncated)
        microseconds.append((time.thread_time() - start) * 1e6)
        found = (str(verdict.outcome), verdict.value, split_response(response).is_exact)
        expected = oracle(response, nums, target, is_truncated)
        num_by_outcome[found[0]] = num_by_outcome.get(found[0], 0) + 1
        if found != expected and len(disagreements) < 20:
            disagreements.append((response, nums, target, found, expected))
    return Result(num_by_outcome, disagreements, sorted(microseconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1_000_000, help="responses")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = fuzz(arguments.num, seed=arguments.seed)
    print("outcomes", dict(sorted(result.num_by_outcome.items())))
    print(f"verify: p50 {result.at(0.5):.1f} us, p99 {result.at(0.99):.1f} us, worst {result.at(1):.0f} us")
    for disagreement in result.disagreements:
        print(disagreement)
    raise SystemExit(1 if result.disagreements else 0)


if __name__ == "__main__":
    main()
