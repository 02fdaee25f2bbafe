"""Arithmetic written in text -> its exact value, by a grammar; nothing a model wrote is ever evaluated by Python.

    sum     = product (("+" | "-") product)*
    product = operand (("*" | "/") operand)*
    operand = integer | "(" sum ")"
    integer = "0" | [1-9][0-9]*

ASCII only; blanks (space, tab, newline) anywhere between these. No sign in front of a number, no leading zeros, no
decimals, no `**`, `//`, `%`, `=`, names or calls. Division by zero has no value, so it is no expression either.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 256
"""Characters; six numbers of four digits, with every parenthesis and blank, need fewer than 80."""

MAX_DEPTH = 32
"""Parentheses open at once; six numbers need five."""

_ALPHABET = re.compile(r"[0-9+\-*/() \t\r\n]*")
_TOKEN = re.compile(r"[0-9]+|[+\-*/()]")
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of the grammar."""

    value: Fraction
    """What it is worth, exactly."""
    numbers: tuple[int, ...]
    """Its integers from left to right, repeated where they repeat."""


def parse(text: str) -> Expression | None:
    """The expression `text` spells, or None where it is outside the grammar, over the caps or divides by zero.

    >>> parse("(1 + 2) / 3")
    Expression(value=Fraction(1, 1), numbers=(1, 2, 3))
    >>> parse("2 ** 3"), parse("-1 + 2"), parse("1.5"), parse("1 / 0")
    (None, None, None, None)
    """
    if len(text) > MAX_LENGTH or not _ALPHABET.fullmatch(text):
        return None
    numbers: list[int] = []
    values: list[tuple[int, int]] = []  # numerator and denominator, reduced only at the end: 256 characters stay small
    operators: list[str] = []
    depth = 0
    is_operand_next = True
    for token in _TOKEN.findall(text):
        if token.isdigit():
            if not is_operand_next or (token[0] == "0" and len(token) > 1):
                return None
            numbers.append(int(token))
            values.append((numbers[-1], 1))
            is_operand_next = False
        elif token == "(":
            depth += 1
            if not is_operand_next or depth > MAX_DEPTH:
                return None
            operators.append(token)
        elif is_operand_next:
            return None
        elif token == ")":
            depth -= 1
            if depth < 0 or not _apply(operators, values, down_to=1):
                return None
            operators.pop()
        else:
            if not _apply(operators, values, down_to=_PRECEDENCE[token]):
                return None
            operators.append(token)
            is_operand_next = True
    if is_operand_next or depth or not _apply(operators, values, down_to=1):
        return None
    numerator, denominator = values[0]
    return Expression(Fraction(numerator, denominator), tuple(numbers))


def _apply(operators: list[str], values: list[tuple[int, int]], *, down_to: int) -> bool:
    """Applies the pending operators that bind at least as tightly as `down_to`; False at a division by zero."""
    while operators and _PRECEDENCE[operators[-1]] >= down_to:
        operator = operators.pop()
        c, d = values.pop()
        a, b = values.pop()
        if operator == "+":
            values.append((a * d + c * b, b * d))
        elif operator == "-":
            values.append((a * d - c * b, b * d))
        elif operator == "*":
            values.append((a * c, b * d))
        elif c == 0:
            return False
        else:
            values.append((a * d, b * c))
    return True
