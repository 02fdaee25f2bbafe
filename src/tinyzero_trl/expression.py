"""Arithmetic written in text -> its exact value, by a grammar; nothing a model wrote is ever evaluated by Python.

    sum     = product (("+" | "-") product)*
    product = operand (("*" | "/") operand)*
    operand = ["-"] (integer | "(" sum ")")
    integer = "0" | [1-9][0-9]*

ASCII only; blanks (space, tab, newline) anywhere between these. A minus may stand in front of a number or a parenthesis, but not
behind another minus: no `--`. No plus in front, no leading zeros, no decimals, no `**`, `//`, `%`, `=`, names or calls. Division by
zero has no value, so it is no expression either.
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
_NEGATE = "~"
"""The minus in front of an operand, on the stack of operators."""
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, _NEGATE: 3}


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of the grammar."""

    value: Fraction
    """What it is worth, exactly."""
    numbers: tuple[int, ...]
    """Its integers from left to right, repeated where they repeat."""
    needs_sign: bool = False
    """Without the minus in front it has no difference in it that would give this value: `-3 - 5`, `-(3 * 5)`, but not `-3 + 5`.

    Each sign can be moved outwards: `-a + b` is `b - a`, `-a * b` is `-(a * b)`. One that is left in front of everything goes
    by turning any difference below it round. Where there is none, the value is minus a sum, product or quotient.
    """


def parse(text: str) -> Expression | None:
    """The expression `text` spells, or None where it is outside the grammar, over the caps or divides by zero.

    >>> parse("(1 + 2) / 3")
    Expression(value=Fraction(1, 1), numbers=(1, 2, 3), needs_sign=False)
    >>> parse("-3 + 5").value, parse("-3 - 5").needs_sign
    (Fraction(2, 1), True)
    >>> parse("2 ** 3"), parse("--1 + 2"), parse("1.5"), parse("1 / 0")
    (None, None, None, None)
    """
    if len(text) > MAX_LENGTH or not _ALPHABET.fullmatch(text):
        return None
    numbers: list[int] = []
    # Numerator and denominator, reduced only at the end (256 characters stay small), and the sign that cannot be moved away:
    # 1 without one, -1 with one, 0 where a difference takes it up.
    values: list[tuple[int, int, int]] = []
    operators: list[str] = []
    depth = 0
    is_operand_next = True
    is_behind_minus = False
    for token in _TOKEN.findall(text):
        if is_operand_next and token == "-":
            if is_behind_minus:
                return None
            operators.append(_NEGATE)
            is_behind_minus = True
            continue
        is_behind_minus = token == "-"
        if token.isdigit():
            if not is_operand_next or (token[0] == "0" and len(token) > 1):
                return None
            numbers.append(int(token))
            values.append((numbers[-1], 1, 1))
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
    numerator, denominator, sign = values[0]
    return Expression(Fraction(numerator, denominator), tuple(numbers), needs_sign=sign < 0)


def _apply(operators: list[str], values: list[tuple[int, int, int]], *, down_to: int) -> bool:
    """Applies the pending operators that bind at least as tightly as `down_to`; False at a division by zero."""
    while operators and _PRECEDENCE[operators[-1]] >= down_to:
        operator = operators.pop()
        c, d, right = values.pop()
        if operator == _NEGATE:
            values.append((-c, d, -right))
            continue
        a, b, left = values.pop()
        if operator in "+-":
            right = right if operator == "+" else -right
            c = c if operator == "+" else -c
            # Of two that have the same sign it is the sum's; of different signs, or where one takes it up, they are a difference.
            values.append((a * d + c * b, b * d, left if left == right else 0))
        elif operator == "*":
            values.append((a * c, b * d, left * right))
        elif c == 0:
            return False
        else:
            values.append((a * d, b * c, left * right))
    return True
