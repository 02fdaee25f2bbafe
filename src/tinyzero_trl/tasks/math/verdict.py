r"""Whether a response's final answer is the right one: text first, sympy in other processes where text does not decide.

The answer is found by the rule of `final_answer`. What then counts as the same answer:

- numbers, exactly: `0.5`, `1/2`, `\frac12`, `5e-1`, `1,234` and `1234`; nearly only where the gold is a fraction that no decimal
  equals, within 1e-6 relatively: `0.333333` is `1/3`, `0.33` is not;
- percent: `50\%` is `50`, and `0.5`; but `0.5` as the gold is not `50`;
- units may be left out or added, but a known one must not be another (`UNITS`): `5 cm` is not `5 m`;
- a name in front may be left out or added: `x = 5` is `5`; where both sides name all their parts, these go by name: `x=1, y=2` is not
  `x=2, y=1`. Chains (`0=0=1`) and equations of numbers (`12 = 13`) are no answer;
- a bare list or a set in any order, a tuple or interval in its own; a bare list is also a tuple in this order, but not an interval
  with its ends (`[1,2]`); what the gold has not as many of as the answer is wrong, so "3 or 4" is not 3;
- what one side may also be read as (`readings`): a decimal comma, inequalities and unions as the set of numbers they are, a function under another name;
- words in any case, single letters in theirs;
- a number to a base (`11_2`) only where the gold has that base; the base may be left out;
- what math-verify calls equal within six decimals and 1e-6 relatively: `6 \cdot 7` is `42`, `\frac{\sqrt{4}}{2}` is `1`, `i^6` is `-1`; what is equal to 0 is exactly so.
"""

from __future__ import annotations

import re
from fractions import Fraction

from tinyzero_trl.task import Outcome, Verdict
from tinyzero_trl.tasks.math.final_answer import MAX_ANSWER, find_answer
from tinyzero_trl.tasks.math.normal_form import SUBSCRIPT, Form, canonical, form_of
from tinyzero_trl.tasks.math.readings import alike
from tinyzero_trl.tasks.math.units import agree
from tinyzero_trl.tasks.math.workers import UndecidedError, compare

__all__ = ["canonical", "gold_fault", "verify"]

RELATIVE = Fraction(1, 10**6)
"""How far a decimal may be from a fraction that has none, of that fraction."""
MAX_DEPTH = 12
"""Brackets open at once in an answer that sympy reads."""
MAX_NUMBER = 100
"""Digits in a row."""

_DIGITS = re.compile(rf"[0-9]{{{MAX_NUMBER}}}")
_HUGE = re.compile(
    r"\^\s*\{?\s*-?[0-9]{6}|\^\s*\{?\s*\(?[0-9]+\s*\)?\s*\^|!\s*\)*\s*!|[0-9]{5}\s*\)*\s*!|\^\s*\{?\s*[0-9]+\s*\}?\s*\)\s*!|e\+?[0-9]{4}"
)
"""Powers, towers and factorials that no answer needs and that sympy may work out for ever."""
_ILLEGAL = re.compile(r"[\x00-\x08\x0b-\x1f\ud800-\udfff@#`\"?]|__|\\(?:boxed|fbox|input|write|def|begin\{verbatim)")
_DOTS = re.compile(r"\\[lcvd]?dots|\.\.\.")
"""Something left out, which the library drops."""
_APART = re.compile(r"(?<![\^_])[0-9] [0-9]")
"""Two numbers with nothing between them."""
_CAPITALS = re.compile(r"\\(?:Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)(?![a-zA-Z])")
_TIME = re.compile(r"[0-9]\s*:\s*[0-9]{2}")
_BASE = re.compile(r"([0-9A-Z]+)_\{?([0-9]+)\}?")


def verify(response: str, *, answer: str, is_truncated: bool = False) -> Verdict:
    r"""What became of `response`: `correct` exactly when its final answer is the same as `answer`, by the rules above.

    answer: the gold, bare, as data sets have it. is_truncated: it ran into the token limit; it then counts as `truncated`
    unless it has its box or answer block. `illegal_expression` is an answer that these rules refuse to read; one whose comparison
    takes too long, eats the memory or ends in an error of the library is `undecided`.
    Bounded for any text: sympy has `workers.CPU_SECONDS` in a process of its own.

    >>> verify(r"<think>...</think> So it is $\boxed{\tfrac{1}{2}}$.", answer="0.5").outcome
    <Outcome.correct: 'correct'>
    """
    found = find_answer(response, is_truncated=is_truncated)
    if found.answer is None:
        if is_truncated:
            return Verdict(Outcome.truncated)
        return Verdict(Outcome.bad_format if found.is_malformed else Outcome.no_answer)
    if len(found.answer) > MAX_ANSWER:
        return Verdict(Outcome.illegal_expression, None, found.answer[:MAX_ANSWER])
    gold, form = alike(form_of(answer[:MAX_ANSWER]), form_of(found.answer), written=found.answer)
    is_same = same_by_text(gold, form)
    if is_same is None:
        try:
            is_legal, is_same = (
                (False, False)
                if is_beyond(found.answer) or is_beyond(form.source) or _DOTS.search(form.source)
                else compare(*sources(gold, form))
            )
        except UndecidedError:
            return Verdict(Outcome.undecided, form.value, found.answer)
        if not is_legal:
            return Verdict(Outcome.illegal_expression, form.value, found.answer)
    return Verdict(Outcome.correct if is_same else Outcome.wrong_value, form.value, found.answer)


def is_beyond(answer: str) -> bool:
    """Whether `answer` is outside what sympy is asked about: too deep, too large, or no mathematics."""
    if _DIGITS.search(answer) or _HUGE.search(answer) or _ILLEGAL.search(answer):
        return True
    depth = deepest = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    parts = re.split(r",|;|\\text|and|or|\\\\|&", SUBSCRIPT.sub("", answer))
    return deepest > MAX_DEPTH or any(part.count("=") > 1 for part in parts)


def sources(gold: Form, form: Form) -> tuple[str, str]:
    """The two for sympy: with the names in front where both are equations, else without."""
    if gold.is_equation and form.is_equation:
        return gold.equation, form.equation
    return gold.source, form.source


def same_by_text(gold: Form, form: Form) -> bool | None:
    """Whether the two are the same answer, or None where text does not decide."""
    if not gold.text or not form.text:
        return False
    if not agree(gold.unit, form.unit):
        return False
    if gold.parts or form.parts:
        return _same_parts(gold, form)
    if gold.is_equation and form.is_equation and gold.name != form.name:
        # Of `K = 8` and `x = 8` the names do not matter; of `y = 2x` and `x = 2y` they do.
        return gold.value == form.value if gold.value is not None and form.value is not None else None
    if gold.text == form.text:
        return True
    if gold.value is not None and form.value is not None:
        return _same_numbers(gold, form)
    if (base := _BASE.fullmatch(gold.text)) is not None:
        return form.text == base[1] and not form.source.endswith("_{10}")
    if _APART.search(form.text):
        return False
    if gold.is_word and (form.is_word or form.value is not None) and sorted(gold.text) != sorted(form.text):
        return False
    if _is_other_by_marks(gold, form):
        return False
    if _BASE.fullmatch(form.text) or (form.is_equation and not form.name and not gold.is_equation):
        return False
    return None


def _is_other_by_marks(gold: Form, form: Form) -> bool:
    """Whether the two differ in what the library drops: primes, a transpose, Greek capitals, a time's colon, the order of a word's letters."""
    one, other = gold.source, form.source
    if one.count("'") != other.count("'") or "^T" in one or "^T" in other:
        return True  # for sympy, `AB^T` is `BA^T`
    if sorted(_CAPITALS.findall(one)) != sorted(_CAPITALS.findall(other)):
        return True
    if (_TIME.search(one) is None) != (_TIME.search(other) is None) or max(one.count(":"), other.count(":")) > 1:
        return True
    # Three to one is no number of things, three to four may be a fraction.
    if (":" in one) != (":" in other) and any(
        side.value is not None and side.value.denominator == 1 for side in (gold, form)
    ):
        return True
    # `xyz` and `zyx` are one product; `ABCD` names points in order, and letters that do not follow each other in the alphabet are a word.
    letters = "".join(sorted(gold.text))
    is_product = letters in "abcdefghijklmnopqrstuvwxyz" and not (one.isupper() or gold.is_text or form.is_text)
    is_order_told = len(letters) > 2 or gold.is_text or form.is_text
    return gold.is_word and form.is_word and not is_product and is_order_told and gold.text != form.text


def _same_numbers(gold: Form, form: Form) -> bool:
    assert gold.value is not None
    assert form.value is not None
    if gold.value == form.value:
        return True
    # A whole number is no rounded fraction: 714286 is not 5000000/7.
    if not _is_decimal(gold.value) and _is_decimal(form.value) and form.value.denominator > 1:
        return abs(gold.value - form.value) <= RELATIVE * abs(gold.value)
    if gold.is_percent and not form.is_percent:
        return gold.value == form.value * 100
    return form.is_percent and not gold.is_percent and gold.value * 100 == form.value


def _is_decimal(value: Fraction) -> bool:
    """Whether a decimal is worth exactly this: no prime but 2 and 5 divides its denominator."""
    return 10 ** value.denominator.bit_length() % value.denominator == 0


def _same_parts(gold: Form, form: Form) -> bool | None:
    if gold.brackets and form.brackets and gold.brackets != form.brackets:
        return False
    if gold.parts and form.parts and _has_ends(gold) != _has_ends(form):
        return False
    is_named = _names_all(gold) or _names_all(form)
    if gold.text == form.text and not is_named:
        return True
    if len(gold.parts) != len(form.parts):
        # One of them may still be a union or an inequality that sympy reads as the same set.
        is_plain = all(part.value is not None or part.is_word for part in (*gold.parts, *form.parts))
        is_one_plain = any(len(side.parts) == 0 and side.value is not None for side in (gold, form))
        return False if is_plain or is_one_plain else None
    is_ordered = is_named or gold.brackets not in ("", "{}") or form.brackets not in ("", "{}")
    names, others = (sorted(part.name for part in side.parts) for side in (gold, form))
    is_by_name = names == others and _names_all(gold)

    def place(part: Form) -> str:
        return part.name if is_by_name else "" if is_ordered else part.text

    pairs = zip(sorted(gold.parts, key=place), sorted(form.parts, key=place), strict=True)
    verdicts = [same_by_text(one, other) for one, other in pairs]
    if all(verdicts):
        return True
    is_plain = all(part.value is not None for part in (*gold.parts, *form.parts))
    if is_plain or (is_ordered and any(verdict is False for verdict in verdicts)):
        return False
    return None


def _has_ends(form: Form) -> bool:
    """Whether it is an interval with an end of its own; `(1,2)` may be a point."""
    return form.brackets in ("[)", "(]") or (form.brackets == "[]" and len(form.parts) == 2)


def _names_all(form: Form) -> bool:
    """Whether each part has a name of its own: `x=1, y=2`, and not `x=1, x=2`."""
    names = {part.name for part in form.parts}
    return len(names) == len(form.parts) > 1 and "" not in names


def gold_fault(answer: object) -> str | None:
    """What keeps `answer` from being a gold that any response could meet, or None; for the preparation of data."""
    if not isinstance(answer, str):
        return f"the answer must be text, not {type(answer).__name__}"
    if not answer.strip():
        return "the answer is empty"
    if verify(f"\\boxed{{{answer}}}", answer=answer).outcome is not Outcome.correct:
        return f"the answer {answer[:80]!r} does not equal itself: too long, or no mathematics"
    return None
