r"""An answer, spelled as `spelling` has it -> its normal form, by taking text apart: no algebra, no sympy, microseconds.

Left out: `x \in`, `(p,q) =`, percent signs, units behind a number, thousands separators, a `x =` in front, parentheses around one thing.
`1/2`, `0.5`, `1e-1`, `1\frac{1}{2}` and their like become a fraction; words lose their case; lists lose their order, tuples and intervals keep it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from tinyzero_trl.tasks.math.final_answer import MAX_ANSWER
from tinyzero_trl.tasks.math.spelling import cleaned
from tinyzero_trl.tasks.math.units import scaled, without_unit

MAX_DIGITS = 60
"""Digits of a number that is worked out; longer ones are text."""
MAX_EXPONENT = 60
"""Of ten, in `1e5` and `3 \\times 10^{5}`."""

_FUNCTIONS = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|lg|exp|sqrt|max|min|sup|inf|lim|gcd|lcm|det|dim|deg|frac|binom|sum|prod|int|pm|mp|lfloor|lceil"
_AND = re.compile(r"\\text\s*\{\s*(?:,?\s*(?:and|or))\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])", re.IGNORECASE)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_SUBSCRIPTED = r"(?:_(?:\\?\w+|\{[^{}]{1,16}\}))?"
_ARGUMENTS = r"(?:\s*\((?:[^()=]|\([^()=]{0,16}\)){0,32}\)|\[[A-Z]\])"
NAMED = (
    rf"(?:(?!\\(?:{_FUNCTIONS})(?![a-zA-Z])|(?:{_FUNCTIONS})(?:\s|_|[({{]))\\?[a-zA-Z]{{1,24}}(?:\s*\{{?[a-zA-Z]{{0,24}}\}}?){_SUBSCRIPTED}'*(?:\^\{{?-1\}}?)?{_ARGUMENTS}?"
    rf"|\([a-zA-Z]\s*\\circ\s*[a-zA-Z]\){_ARGUMENTS}|\\text\s*\{{[a-zA-Z' ]{{1,40}}\}}|\\(?:max|min)(?=\s*=)"
    r"|\|[A-Z]{2,3}\||\|[A-Z]\s*\\c[au]p\s*[A-Z]\||\[[A-Z]{3,8}\]|(?:m\s*)?\\(?:angle|triangle|overline|widehat|measuredangle)\s*\{?\s*[A-Z]{1,8}\s*\}?)"
)
"""What an answer may be the value of: `x`, `f^{-1}(2)`, `y_{\\max}`, `|AB|`, `[ABC]`; no function of a name."""
_NAME = re.compile(rf"^\s*({NAMED}(?:\s*:\s*[a-zA-Z][a-zA-Z0-9_{{}}]*)?)\s*=(?!=)\s*")
_SAME = re.compile(r"^\s*[a-zA-Z]\s*=(?!=)")
"""The second name of `x = y = 5`."""
_NAME_LAST = re.compile(rf"^\s*([^=]*[0-9][^=]*?)\s*=\s*({NAMED})\s*$")
"""`96 = y`."""
_SAID = re.compile(
    r"\s*\\text\s*\{\s*(?:the )?(?:final )?(?:answer|ans)\.?(?:\s+is)?\s*:?\s*\}\s*[:=]?\s*", re.IGNORECASE
)
_OF = re.compile(r"^\s*(?:[a-zA-Z]\w*\s*\\in(?![a-zA-Z])|\([a-zA-Z_0-9, ]*[a-zA-Z][a-zA-Z_0-9, ]*\)\s*=)\s*")
"""What says of a set, tuple or interval whose it is: `x \\in`, `(p,q) =`."""
_SUM = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(rf"\+?({_SUM})(?:[eE]([-+]?[0-9]+)|\*10\^(?:\{{?([-+]?[0-9]+)\}}?))?(?:_\{{10\}})?")
_POWER_OF_TEN = re.compile(r"(-?)\(?10\)?\^\{?(-?[0-9]{1,2})\}?")
_RATIO = re.compile(rf"(-?)\+?(?:\\frac\{{({_SUM})\}}\{{({_SUM})\}}|({_SUM})/({_SUM}))")
_MIXED = re.compile(r"(-?)([0-9]+)(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|\x00([0-9]+)/([0-9]+))")
_THOUSANDS = re.compile(r"(?<![0-9.])([0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+))(?![0-9/])")
_BLANKS = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
"""A blank between two digits stays: they are not one number."""
SUBSCRIPT = re.compile(r"_\{[^{}]*\}")
"""`k = 1` below a sum is no equation."""
_WORD = re.compile(r"[A-Za-z][A-Za-z .'-]*[A-Za-z.]|[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Form:
    """One answer in its normal form."""

    text: str
    """What `canonical` gives."""
    source: str
    """The same for sympy: cleaned LaTeX that keeps its order and its parentheses."""
    value: Fraction | None = None
    """What it is worth, where it is a plain number."""
    parts: tuple[Form, ...] = ()
    """Of a list, tuple, set or interval."""
    brackets: str = ""
    """Around `parts`: `()`, `[)`, `{}` and so on; empty for a bare list."""
    name: str = ""
    """Of `name = ...`."""
    unit: str = ""
    """One of `units.UNITS`, where it has one."""
    is_percent: bool = False
    is_word: bool = False
    """A word or a letter, not a formula."""
    is_text: bool = False
    """A word in `\\text`: no product of its letters."""
    cleaned: str = ""
    """All of the answer as `spelling` has it; empty for a part of one."""

    @property
    def is_equation(self) -> bool:
        """Whether it has an equals sign, be it behind a name."""
        return bool(self.name) or "=" in SUBSCRIPT.sub("", self.source)

    @property
    def equation(self) -> str:
        """`source` with its name in front, where it has one."""
        return f"{self.name}={self.source}" if self.name else self.source


def canonical(answer: str) -> str:
    r"""The normal form of `answer`: equal for two answers that are the same but for spelling; majority vote groups by it.

    >>> canonical(r"\dfrac{1}{2}"), canonical("$0.50$"), canonical(r"x = \frac12"), canonical("1,234 apples")
    ('1/2', '1/2', '1/2', '1234')
    """
    return form_of(answer[:MAX_ANSWER]).text


@lru_cache(maxsize=2**12)
def form_of(answer: str) -> Form:
    """The normal form of `answer`; never raises. Linear in its length but for a few short look-aheads."""
    text = cleaned(answer)
    return replace(_form(text, 0), cleaned=text)


def _form(text: str, depth: int) -> Form:
    text = (
        _SAID.sub("", text.strip().rstrip(".,;:").strip(), count=1)
        if text.startswith("\\text")
        else text.strip().rstrip(".,;:").strip()
    )
    about, sign, near = text.partition("\\approx")
    if sign:
        text = near.strip() if not about.strip() or about.strip().isalpha() else about.strip()
    joined = _OF.sub("", _AND.sub(",", text))
    if not re.search(r"[(\[]|\\\{", joined):  # `(12,102)` is a pair
        joined = _THOUSANDS.sub(lambda match: re.sub("[, ]", "", match[1]), joined)
    if joined.startswith("{") and joined.endswith("}") and _closes_last(joined):
        joined = joined[1:-1].strip()
    parts = _split(joined, ";") if ";" in joined else []
    if len({len(_split(part)) for part in parts}) == 1 < min(len(parts), len(_split(parts[0]))):
        parts = [f"({part})" for part in parts]  # `1,2; 3,4` is two pairs
    else:
        parts = _split(joined)
    if len(parts) > 1 and depth < 4:
        return _listed(parts, "", depth)
    opening, closing = _brackets(joined)
    if opening and depth < 4:
        inner = _split(joined[len(opening) : len(joined) - len(closing)])
        if len(inner) > 1 or opening == "\\{":
            return _listed(inner, opening[-1] + closing[-1], depth)
        if opening == "(" and inner and "," not in joined:
            return _form(inner[0], depth + 1)
    if joined.count("\\pm") == 1 and depth < 4:
        return _listed([joined.replace("\\pm", "+").lstrip("+"), joined.replace("\\pm", "-")], "", depth)
    return _single(joined)


def _listed(parts: list[str], brackets: str, depth: int) -> Form:
    forms = [_form(part, depth + 1) for part in parts if part.strip()]
    # A bare "3, 4 and 5" repeats nothing and has no order, and a set neither.
    keeps_order = brackets not in ("", "{}")
    texts = [form.text for form in forms]
    text = ",".join(texts if keeps_order else sorted(texts))
    source = ",".join(form.source for form in forms)
    left, right = ("\\{", "\\}") if brackets == "{}" else (brackets[:1], brackets[1:])
    return Form(f"{brackets[:1]}{text}{brackets[1:]}", f"{left}{source}{right}", parts=tuple(forms), brackets=brackets)


def _single(text: str) -> Form:
    name = ""
    if (named := _NAME_LAST.match(text)) and not re.search("[<>]|\\\\[lg]e", text):
        text = f"{named[2]}={named[1]}"
    if named := _NAME.match(text):
        name, text = re.sub(r"\s|\\text|[{}]", "", named[1]), _SAME.sub("", text[named.end() :], count=1).strip()
    is_percent = text.endswith("%")
    text = text.removesuffix("%").removesuffix("\\").strip()
    text, unit = without_unit(scaled(text))
    source = _TEXT.sub(lambda match: match[1] if match.span() == (0, len(text)) else match[0], text).strip()
    if source.startswith("(") and source.endswith(")") and source[1:-1].isalpha():
        source = source[1:-1]
    value = _value(source)
    if value is not None:
        return Form(str(value), source, value=value, name=name, unit=unit, is_percent=is_percent)
    is_word = _WORD.fullmatch(source) is not None
    is_text = is_word and source != text
    spelled = re.sub(r"\s+", " ", source) if is_word else _BLANKS.sub("", source)
    spelled = spelled.casefold() if is_word and len(spelled) > 1 else spelled
    return Form(spelled, source, name=name, unit=unit, is_percent=is_percent, is_word=is_word, is_text=is_text)


def _value(text: str) -> Fraction | None:
    if len(text) > 2 * MAX_DIGITS:
        return None
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9]+/[0-9])", "\x00", text)
    text = _BLANKS.sub("", text)
    if match := _NUMBER.fullmatch(text):
        exponent = int(match[2] or match[3] or 0) if len(match[2] or match[3] or "") < 5 else MAX_EXPONENT + 1
        return Fraction(match[1]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    if match := _POWER_OF_TEN.fullmatch(text):
        return Fraction(10) ** int(match[2]) * (-1 if match[1] else 1) if abs(int(match[2])) <= MAX_EXPONENT else None
    if match := _MIXED.fullmatch(text):
        over, under = int(match[3] or match[5]), int(match[4] or match[6])
        if under == 0:
            return None
        value = int(match[2]) + Fraction(over, under)
        return -value if match[1] else value
    if match := _RATIO.fullmatch(text):
        divisor = Fraction(match[3] or match[5])
        if divisor == 0:
            return None
        value = Fraction(match[2] or match[4]) / divisor
        return -value if match[1] else value
    return None


def _brackets(text: str) -> tuple[str, str]:
    """The pair around all of `text`, or two empty texts."""
    for opening in ("\\{", "(", "["):
        if text.startswith(opening):
            for closing in ("\\}",) if opening == "\\{" else (")", "]"):
                if text.endswith(closing) and _closes_last(text):
                    return opening, closing
    return "", ""


def _closes_last(text: str) -> bool:
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and at > 0:
            return at == len(text) - 1
        if depth < 0:
            return False
    return False


def _split(text: str, separators: str = ",;") -> list[str]:
    """`text` at its separators outside all brackets; one part where brackets do not match."""
    parts, start, depth = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in separators and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()] if depth == 0 else [text]


def split_at(text: str, separator: re.Pattern[str]) -> list[str]:
    """`text` at each `separator` that stands outside all brackets."""
    parts, start, depth, at = [], 0, 0, 0
    for found in separator.finditer(text):
        between = text[at : found.start()]
        depth += sum(between.count(bracket) for bracket in "([{") - sum(between.count(bracket) for bracket in ")]}")
        at = found.start()
        if depth == 0:
            parts.append(text[start:at])
            start = at = found.end()
    return [*parts, text[start:]]
