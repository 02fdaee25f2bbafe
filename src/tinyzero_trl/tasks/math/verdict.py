r"""Decides if the final answer of a response equals the gold: by text, or by sympy in worker processes if text does not decide.

The answer is found by the rule of `final_answer`. Rules for equality:

- Numbers are compared exactly: `0.5`, `1/2`, `\frac12` and `5e-1` are equal, and so are `1,234` and `1234`. Only if the gold is a
  fraction that no decimal equals, a relative difference of 1e-6 is allowed: `0.333333` is `1/3`, `0.33` is not.
- Percent: `50\%` is `50` and `0.5`, but with the gold `0.5`, `50` is wrong.
- Units may be left out or added, but two known units must be the same (`UNITS`): `5 cm` is not `5 m`.
- A name in front may be left out or added: `x = 5` is `5`. If both sides name all their parts, these are compared by name: `x=1, y=2` is
  not `x=2, y=1`. Chains (`0=0=1`) and equations of numbers (`12 = 13`) are not answers.
- A bare list or a set may have any order, a tuple or an interval not. A bare list equals a tuple in the same order, but not an interval
  with closed ends (`[1,2]`). The number of parts must be the same: "3 or 4" is not 3.
- Other readings (`readings`): a decimal comma, inequalities and unions as sets of numbers, a function under another name.
- Words are compared without case, single letters with case.
- A number with a base (`11_2`) needs a gold with this base; the base may be left out.
- Other expressions are equal if math-verify calls them equal within six decimals, and 1e-6 relatively: `6 \cdot 7` is `42`,
  `\frac{\sqrt{4}}{2}` is `1`, `i^6` is `-1`. Equality to 0 is exact.
"""

from __future__ import annotations

import re
from fractions import Fraction

from tinyzero_trl.task import Outcome, Verdict, shortened
from tinyzero_trl.tasks.math.final_answer import MAX_ANSWER, find_answer
from tinyzero_trl.tasks.math.normal_form import SUBSCRIPT, Form, canonical, form_of
from tinyzero_trl.tasks.math.readings import alike
from tinyzero_trl.tasks.math.units import agree
from tinyzero_trl.tasks.math.workers import UndecidedError, compare

__all__ = ["canonical", "verify", "why_not_a_gold"]

RELATIVE = Fraction(1, 10**6)
"""Largest relative difference of a decimal from a fraction that no decimal equals."""
MAX_DEPTH = 12
"""Most brackets open at once in an answer that sympy reads."""
MAX_NUMBER = 100
"""Most digits in a row in an answer that sympy reads."""

_DIGITS = re.compile(rf"[0-9]{{{MAX_NUMBER}}}")
_HUGE = re.compile(
    r"\^\s*\{?\s*-?[0-9]{6}|\^\s*\{?\s*\(?[0-9]+\s*\)?\s*\^|!\s*\)*\s*!|[0-9]{5}\s*\)*\s*!|\^\s*\{?\s*[0-9]+\s*\}?\s*\)\s*!|e\+?[0-9]{4}"
)
"""Powers, towers and factorials that no answer needs and that sympy may compute for ever."""
_ILLEGAL = re.compile(r"[\x00-\x08\x0b-\x1f\ud800-\udfff@#`\"?]|__|\\(?:boxed|fbox|input|write|def|begin\{verbatim)")
_DOTS = re.compile(r"\\[lcvd]?dots|\.\.\.")
"""Dots for something left out, which math-verify ignores."""
_APART = re.compile(r"(?<![\^_])[0-9] [0-9]")
"""Two numbers with a blank between them."""
_CAPITALS = re.compile(r"\\(?:Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)(?![a-zA-Z])")
_TIME = re.compile(r"[0-9]\s*:\s*[0-9]{2}")
_BASE = re.compile(r"([0-9A-Z]+)_\{?([0-9]+)\}?")


def verify(response: str, *, answer: str, is_truncated: bool = False) -> Verdict:
    r"""The verdict on `response`: `correct` exactly if its final answer equals `answer` by the rules in the head of this file.

    answer: the bare gold. is_truncated: the response reached the token limit; without a box or answer block it is then `truncated`.
    An answer that the rules refuse to read is an `illegal_expression`; one whose comparison takes too long, fills the memory or ends
    in an error of the library is `undecided`. The time is bounded for any text: sympy has `workers.CPU_SECONDS` in another process.

    >>> verify(r"<think>...</think> So it is $\boxed{\tfrac{1}{2}}$.", answer="0.5").outcome
    <Outcome.correct: 'correct'>
    """
    found = find_answer(response, is_truncated=is_truncated)
    if found.answer is None:
        if is_truncated:
            return Verdict(Outcome.truncated, explanation="cut off before there was an answer")
        if found.is_malformed:
            return Verdict(Outcome.bad_format, explanation="not one complete box or answer block")
        return Verdict(Outcome.no_answer, explanation="no box and no answer block")
    if len(found.answer) > MAX_ANSWER:
        why = f"the answer has more than {MAX_ANSWER} characters"
        return Verdict(Outcome.illegal_expression, None, found.answer[:MAX_ANSWER], why)
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
            return Verdict(Outcome.undecided, form.value, found.answer, "the comparison took too long, or failed")
        if not is_legal:
            why = f"{shortened(found.answer)!r} is outside what is read as mathematics"
            return Verdict(Outcome.illegal_expression, form.value, found.answer, why)
    if is_same:
        return Verdict(Outcome.correct, form.value, found.answer)
    return Verdict(
        Outcome.wrong_value, form.value, found.answer, f"{shortened(found.answer)} is not {shortened(answer)}"
    )


def is_beyond(answer: str) -> bool:
    """True if sympy must not read `answer`: too deep, too large, or not mathematics."""
    if _DIGITS.search(answer) or _HUGE.search(answer) or _ILLEGAL.search(answer):
        return True
    depth = deepest = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    parts = re.split(r",|;|\\text|and|or|\\\\|&", SUBSCRIPT.sub("", answer))
    return deepest > MAX_DEPTH or any(part.count("=") > 1 for part in parts)


def sources(gold: Form, form: Form) -> tuple[str, str]:
    """Gold and answer for sympy: with their names in front if both are equations, else without."""
    if gold.is_equation and form.is_equation:
        return gold.equation, form.equation
    return gold.source, form.source


def same_by_text(gold: Form, form: Form) -> bool | None:
    """True if the two are the same answer, False if not, None if text does not decide."""
    if not gold.text or not form.text:
        return False
    if not agree(gold.unit, form.unit):
        return False
    if gold.parts or form.parts:
        return _same_parts(gold, form)
    if gold.is_equation and form.is_equation and gold.name != form.name:
        # The names do not matter in `K = 8` and `x = 8`, but they do in `y = 2x` and `x = 2y`.
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
    """True if the two differ in marks that math-verify ignores: primes, a transpose, Greek capitals, the colon of a time, the order of letters."""
    one, other = gold.source, form.source
    if one.count("'") != other.count("'") or "^T" in one or "^T" in other:
        return True  # for sympy, `AB^T` is `BA^T`
    if sorted(_CAPITALS.findall(one)) != sorted(_CAPITALS.findall(other)):
        return True
    if (_TIME.search(one) is None) != (_TIME.search(other) is None) or max(one.count(":"), other.count(":")) > 1:
        return True
    # A ratio such as 3:1 is not a whole number, but 3:4 may be a fraction.
    if (":" in one) != (":" in other) and any(
        side.value is not None and side.value.denominator == 1 for side in (gold, form)
    ):
        return True
    # `xyz` and `zyx` are the same product, but `ABCD` names points in order, and letters that are not neighbours in the alphabet are a word.
    letters = "".join(sorted(gold.text))
    is_product = letters in "abcdefghijklmnopqrstuvwxyz" and not (one.isupper() or gold.is_text or form.is_text)
    is_order_told = len(letters) > 2 or gold.is_text or form.is_text
    return gold.is_word and form.is_word and not is_product and is_order_told and gold.text != form.text


def _same_numbers(gold: Form, form: Form) -> bool:
    assert gold.value is not None
    assert form.value is not None
    if gold.value == form.value:
        return True
    # A whole number is not a rounded fraction: 714286 is not 5000000/7.
    if not _is_decimal(gold.value) and _is_decimal(form.value) and form.value.denominator > 1:
        return abs(gold.value - form.value) <= RELATIVE * abs(gold.value)
    if gold.is_percent and not form.is_percent:
        return gold.value == form.value * 100
    return form.is_percent and not gold.is_percent and gold.value * 100 == form.value


def _is_decimal(value: Fraction) -> bool:
    """True if a decimal can have exactly this value: only 2 and 5 divide its denominator."""
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
    """True for an interval with a closed end; `(1,2)` may be a point."""
    return form.brackets in ("[)", "(]") or (form.brackets == "[]" and len(form.parts) == 2)


def _names_all(form: Form) -> bool:
    """True if each part has another name: `x=1, y=2`, but not `x=1, x=2`."""
    names = {part.name for part in form.parts}
    return len(names) == len(form.parts) > 1 and "" not in names


def why_not_a_gold(answer: object) -> str | None:
    """The reason why no response could equal the gold `answer`, or None; used when data is prepared."""
    if not isinstance(answer, str):
        return f"the answer must be text, not {type(answer).__name__}"
    if not answer.strip():
        return "the answer is empty"
    if verify(f"\\boxed{{{answer}}}", answer=answer).outcome is not Outcome.correct:
        return f"the answer {answer[:80]!r} does not equal itself: too long, or no mathematics"
    return None
