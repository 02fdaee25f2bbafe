"""The exact value of arithmetic written as text, by a grammar; nothing that a model wrote is ever evaluated by Python.

    sum     = product (("+" | "-") product)*
    product = operand (("*" | "/") operand)*
    operand = ["-"] (integer | "(" sum ")")
    integer = "0" | [1-9][0-9]*

ASCII only; blanks (space, tab, newline) may stand between these. A minus may precede a number or a parenthesis, but not follow
another minus: `--` is no expression. Nor is a leading plus, a leading zero, a decimal, `**`, `//`, `%`, `=`, a name, a call, or a
division by zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 256
"""Length in characters; six numbers of four digits, with all parentheses and blanks, need fewer than 80."""

MAX_DEPTH = 32
"""Depth of nested parentheses; six numbers need five."""

_ALPHABET = re.compile(r"[0-9+\-*/() \t\r\n]*")
_TOKEN = re.compile(r"[0-9]+|[+\-*/()]")
_NEGATE = "~"
"""Mark on the stack of operators for a minus that precedes an operand."""
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, _NEGATE: 3}


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of the grammar."""

    value: Fraction
    """The exact value."""
    numbers: tuple[int, ...]
    """The integers from left to right, with repetitions."""
    needs_sign: bool = False
    """True if no expression without a leading minus has this value by the same operations: `-3 - 5`, `-(3 * 5)`, but not `-3 + 5`.

    Each sign can be moved outwards: `-a + b` is `b - a`, `-a * b` is `-(a * b)`. A sign in front of the whole expression is
    removed by swapping the operands of a difference inside it. Without a difference, the value is minus a sum, product or quotient.
    """


def parse(text: str) -> Expression | None:
    """The expression that `text` spells; None if it is outside the grammar, exceeds the limits or divides by zero.

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
    # Numerator and denominator, reduced only at the end (256 characters stay small), and the sign that cannot be removed:
    # 1 without a minus, -1 with one, 0 if a difference can absorb it.
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
    """Apply the pending operators that bind at least as tightly as `down_to`; False at a division by zero."""
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
            # Operands of the same sign give it to their sum; operands of different signs are a difference.
            values.append((a * d + c * b, b * d, left if left == right else 0))
        elif operator == "*":
            values.append((a * c, b * d, left * right))
        elif c == 0:
            return False
        else:
            values.append((a * d, b * c, left * right))
    return True
