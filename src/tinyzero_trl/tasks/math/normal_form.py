r"""Parses an answer in the spelling of `spelling` into its normal form, a Form: no algebra, no sympy, microseconds.

Removed: `x \in`, `(p,q) =`, percent signs, units after a number, thousands separators, `x =` in front, parentheses around one part.
Numbers such as `1/2`, `0.5`, `1e-1` and `1\frac{1}{2}` become fractions, words lower case; lists lose their order, tuples and intervals keep it.
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
"""Most digits of a number that becomes a fraction; longer ones stay text."""
MAX_EXPONENT = 60
"""Largest exponent of ten, in `1e5` and `3 \\times 10^{5}`."""

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
"""Names before an equals sign: `x`, `f^{-1}(2)`, `y_{\\max}`, `|AB|`, `[ABC]`; not functions such as `sin x`."""
_NAME = re.compile(rf"^\s*({NAMED}(?:\s*:\s*[a-zA-Z][a-zA-Z0-9_{{}}]*)?)\s*=(?!=)\s*")
_SAME = re.compile(r"^\s*[a-zA-Z]\s*=(?!=)")
"""A second name, as in `x = y = 5`."""
_NAME_LAST = re.compile(rf"^\s*([^=]*[0-9][^=]*?)\s*=\s*({NAMED})\s*$")
"""A name after the value, as in `96 = y`."""
_SAID = re.compile(
    r"\s*\\text\s*\{\s*(?:the )?(?:final )?(?:answer|ans)\.?(?:\s+is)?\s*:?\s*\}\s*[:=]?\s*", re.IGNORECASE
)
_OF = re.compile(r"^\s*(?:[a-zA-Z]\w*\s*\\in(?![a-zA-Z])|\([a-zA-Z_0-9, ]*[a-zA-Z][a-zA-Z_0-9, ]*\)\s*=)\s*")
"""Names before a set, tuple or interval: `x \\in`, `(p,q) =`."""
_SUM = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(rf"\+?({_SUM})(?:[eE]([-+]?[0-9]+)|\*10\^(?:\{{?([-+]?[0-9]+)\}}?))?(?:_\{{10\}})?")
_POWER_OF_TEN = re.compile(r"(-?)\(?10\)?\^\{?(-?[0-9]{1,2})\}?")
_RATIO = re.compile(rf"(-?)\+?(?:\\frac\{{({_SUM})\}}\{{({_SUM})\}}|({_SUM})/({_SUM}))")
_MIXED = re.compile(r"(-?)([0-9]+)(?:\\frac\{([0-9]+)\}\{([0-9]+)\}|\x00([0-9]+)/([0-9]+))")
_THOUSANDS = re.compile(r"(?<![0-9.])([0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+))(?![0-9/])")
_BLANKS = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
"""Blanks, except between two digits, which are two numbers."""
SUBSCRIPT = re.compile(r"_\{[^{}]*\}")
"""Subscripts: `k = 1` below a sum is not an equation."""
_WORD = re.compile(r"[A-Za-z][A-Za-z .'-]*[A-Za-z.]|[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Form:
    """One answer in its normal form."""

    text: str
    """Result of `canonical`: equal for equal answers."""
    source: str
    """The answer for sympy: cleaned LaTeX with its order and parentheses."""
    value: Fraction | None = None
    """The value of a plain number; None for other answers."""
    parts: tuple[Form, ...] = ()
    """Parts of a list, tuple, set or interval."""
    brackets: str = ""
    """Brackets around `parts`: `()`, `[)`, `{}` and so on; empty for a bare list."""
    name: str = ""
    """Name before the equals sign, as in `x = 5`."""
    unit: str = ""
    """Name of the unit (`units.UNITS`), or ""."""
    is_percent: bool = False
    is_word: bool = False
    """True for a word or a letter, not a formula."""
    is_text: bool = False
    """True for a word in `\\text`, which is not a product of its letters."""
    cleaned: str = ""
    """The whole answer in the spelling of `spelling`; empty for a part."""

    @property
    def is_equation(self) -> bool:
        """True if there is an equals sign, also one after a name."""
        return bool(self.name) or "=" in SUBSCRIPT.sub("", self.source)

    @property
    def equation(self) -> str:
        """`source` with the name in front, if there is one."""
        return f"{self.name}={self.source}" if self.name else self.source


def canonical(answer: str) -> str:
    r"""The normal form of `answer` as text, equal for answers that differ only in spelling; majority voting groups by it.

    >>> canonical(r"\dfrac{1}{2}"), canonical("$0.50$"), canonical(r"x = \frac12"), canonical("1,234 apples")
    ('1/2', '1/2', '1/2', '1234')
    """
    return form_of(answer[:MAX_ANSWER]).text


@lru_cache(maxsize=2**12)
def form_of(answer: str) -> Form:
    """The normal form of `answer`; never raises. Takes linear time except for a few short look-aheads."""
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
    # A bare list ("3, 4 and 5") and a set have no order.
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
    """The brackets around the whole `text`, or two empty strings."""
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
    """`text` split at separators outside all brackets; not split if brackets do not match."""
    parts, start, depth = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character in separators and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [part for part in parts if part.strip()] if depth == 0 else [text]


def split_at(text: str, separator: re.Pattern[str]) -> list[str]:
    """`text` split at each `separator` outside all brackets."""
    parts, start, depth, at = [], 0, 0, 0
    for found in separator.finditer(text):
        between = text[at : found.start()]
        depth += sum(between.count(bracket) for bracket in "([{") - sum(between.count(bracket) for bracket in ")]}")
        at = found.start()
        if depth == 0:
            parts.append(text[start:at])
            start = at = found.end()
    return [*parts, text[start:]]
