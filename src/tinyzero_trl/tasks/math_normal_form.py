r"""An answer -> one spelling of it, by rewriting text: no algebra, no sympy, microseconds.

Left out: dollar signs, `x \in`, `(p,q) =`, `\left`, spacing, degree and percent signs, units behind a number, thousands separators, a `x =` in
front, parentheses around one thing. Unified: `\dfrac`, `\frac12`, `1/2`, `0.5`, `1e-1`, `1\frac{1}{2}` and their like become a
fraction; words lose their case; lists lose their order, tuples and intervals keep it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from tinyzero_trl.tasks.math_answers import MAX_ANSWER
from tinyzero_trl.tasks.math_units import scaled, without_unit

MAX_DIGITS = 60
"""Digits of a number that is worked out; longer ones are text."""
MAX_EXPONENT = 60
"""Of ten, in `1e5` and `3 \\times 10^{5}`."""

_FRACTIONS = {
    "½": "12",
    "⅓": "13",
    "⅔": "23",
    "¼": "14",
    "¾": "34",
    "⅕": "15",
    "⅖": "25",
    "⅗": "35",
    "⅘": "45",
    "⅙": "16",
    "⅚": "56",
    "⅛": "18",
    "⅜": "38",
    "⅝": "58",
    "⅞": "78",
}
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕ",
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "chi",
            "psi",
            "omega",
            "Gamma",
            "Delta",
            "Theta",
            "Lambda",
            "Xi",
            "Pi",
            "Sigma",
            "Phi",
            "Psi",
            "Omega",
            "phi",
        ],
        strict=True,
    )
)
_UNICODE = str.maketrans(
    {
        **{sign: rf"\frac{{{digits[0]}}}{{{digits[1]}}}" for sign, digits in _FRACTIONS.items()},
        **{sign: rf"\{name} " for sign, name in _GREEK.items()},
        **{chr(0xFF01 + k): chr(0x21 + k) for k in range(94)},
        **dict.fromkeys("−–—﹣‐‑", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2007\u2002\u2003\u2004\u2005\u2006\u2008\u200a\u3000", " "),
        **dict.fromkeys("\u200b\u2060\ufeff€£¥₹", ""),
        **dict.fromkeys("×·⋅∙✕", "*"),
        **dict.fromkeys("′’", "'"),
        **{
            "÷": "/",
            "⁄": "/",
            "∕": "/",
            "±": r"\pm ",
            "∓": r"\mp ",
            "∈": r"\in ",
            "∅": r"\emptyset ",
            "∪": r"\cup ",
            "∩": r"\cap ",
            "∞": r"\infty ",
        },
        **{
            "≤": r"\le ",
            "⩽": r"\le ",
            "≦": r"\le ",
            "≥": r"\ge ",
            "⩾": r"\ge ",
            "≧": r"\ge ",
            "≠": r"\ne ",
            "≈": r"\approx ",
            "°": r"\degree ",
            "º": r"\degree ",
        },
        **{
            "ℝ": r"\mathbb{R}",
            "ℤ": r"\mathbb{Z}",
            "ℕ": r"\mathbb{N}",
            "ℚ": r"\mathbb{Q}",
            "ℂ": r"\mathbb{C}",
            "∠": r"\angle ",
            "△": r"\triangle ",
            "⊤": r"\top ",
        },
        **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "…": r"\ldots ", "∖": r"\setminus "},
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙᵢ", "0123456789ni")
_FUNCTIONS = r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|lg|exp|sqrt|max|min|sup|inf|lim|gcd|lcm|det|dim|deg|frac|binom|sum|prod|int|pm|mp|lfloor|lceil"
_DROPPED = re.compile(
    r"\\(?:left|right)(?:\.|(?![a-zA-Z]))|"
    r"\\(?:bigg?|Bigg?|displaystyle|textstyle|scriptstyle|limits|quad|qquad|large|Large|LARGE|huge|Huge|small|tiny|normalsize|rm|bf|it|sf|tt|cal|bfseries|itshape)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|(?<!\\)\\\s|~|\\\(|\\\)|\\\[|\\\]|\$"
)
_SPELLINGS = (
    (
        re.compile(
            r"\\color\s*(?:\{[^{}]{0,32}\}|\[[^\[\]]{0,32}\]\{[^{}]{0,32}\})|\\textcolor\s*\{[^{}]{0,32}\}|(?<!\\)\{\}"
        ),
        "",
    ),
    (re.compile(r"\\(?:boldsymbol|bm|mathsf|mathit|mathtt|mathcal|mathnormal|pmb|underline|emph|uline)(?=\s*\{)"), ""),
    (
        re.compile(
            r"\\text(?:bf|it|rm|sf|tt|normal|up|sl)(?=\s*\{)|\\(?:mathrm|mbox|mathbf|hbox|operatorname\*?)(?=\s*\{)"
        ),
        r"\\text",
    ),
    (re.compile(r"\\text\s*\{\s*(gcd|lcm|max|min|sin|cos|tan|cot|sec|csc|log|ln|det)\s*\}"), r"\\\1 "),
    (re.compile(r"(?<![a-zA-Z\\])(gcd|lcm)(?=\s*\()"), r"\\\1 "),
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+"), lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}"),
    (re.compile(r"[₀₁₂₃₄₅₆₇₈₉ₙᵢ]+"), lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}"),
    (
        re.compile(r"([∛∜])\s*(?:\(([^()]*)\)|([0-9a-zA-Z]+))"),
        lambda match: rf"\sqrt[{3 if match[1] == '∛' else 4}]{{{match[2] or match[3]}}}",
    ),
    (re.compile(r"(\^\s*\{?\s*)\\prime\s*\}?|\\prime(?![a-zA-Z])"), "'"),
    (
        re.compile(
            r"\^\s*(?:\{\s*(?:\\intercal|\\top|\\mathsf\{?T\}?|\\text\s*\{?T\}?|T)\s*\}|\\intercal|\\top)(?![a-zA-Z])"
        ),
        "^T",
    ),
    (
        re.compile(
            r"(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z]))\s*(?:\\text\s*\{\s*([CFK])\s*\}|([CFK])(?![a-zA-Z]))"
        ),
        lambda match: rf"\text{{ deg{match[1] or match[2]}}}",
    ),
    (
        re.compile(
            r"\\(sin|cos|tan|cot|sec|csc)\s*((?:\^\s*\{?[0-9]\}?)?)\s*[({]?\s*(-?[0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(?:\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z]))\s*[)}]?"
        ),
        r"\\\1\2(\\frac{\3\\pi}{180}) ",
    ),
    (re.compile(r"\\sqrt\s*(\[[^\[\]]{1,16}\])\s*([0-9a-zA-Z])"), r"\\sqrt\1{\2}"),
    (
        re.compile(
            r"\{?\s*([0-9a-zA-Z]{1,6})\s*\\choose\s*([0-9a-zA-Z]{1,6})\s*\}|\{\s*\{([^{}]{1,16})\}\s*\\choose\s*\{([^{}]{1,16})\}\s*\}"
        ),
        r"\\binom{\1\3}{\2\4}",
    ),
    (re.compile(r"\\[dt]binom(?![a-zA-Z])"), r"\\binom"),
    (re.compile(r"\\(?:varnothing|O)(?![a-zA-Z])|\\\{\s*\\\}|\\text\s*\{\s*(?:empty set)\s*\}"), r"\\emptyset "),
    (re.compile(r"\(\s*([0-9A-Z]+)\s*\)\s*_\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"), r"\1_{\2\3}"),
    (
        re.compile(
            r"(?<=[0-9])\s*(?:\^\s*\{?\s*(?:\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|st|nd|rd|th)\s*\}?|(?:st|nd|rd|th)(?![a-zA-Z])|\\text\s*\{\s*(?:st|nd|rd|th)\s*\})"
        ),
        "",
    ),
    (re.compile(r"(?<=[0-9])\s*(?:\\text\s*\{\s*percent\s*\}|percent(?![a-zA-Z])|per cent(?![a-zA-Z]))"), r"\\%"),
    (re.compile(r"\\(?:mid|vert|lvert|rvert|middle\|)(?![a-zA-Z])"), "|"),
    (
        re.compile(r"\\log\s*_\s*(\{[^{}]{1,16}\}|[0-9a-zA-Z])\s*(?:\{\s*([0-9]+)\s*\}|([0-9]+))(?![0-9.])"),
        r"\\log_\1(\2\3)",
    ),
    (re.compile(r"(?<![_0-9.,a-zA-Z^{])([0-9]+(?:\.[0-9]+)?)\s*(?:\\left\s*)?\("), r"\1*("),
    (re.compile(r"(?<=[0-9])\)\s*\((?=[-0-9\\])"), ")*("),
    (re.compile(r"(\^\s*(?:[0-9]|\{[^{}]{1,16}\}))\s+(?=[0-9])"), r"\1*"),
    (re.compile(r"(?<![a-zA-Z\\_{])i\s*(?=\()"), "i*"),
    (re.compile(r"(?<![0-9.,])0\s?\{\s?,\s?\}\s?(?=[0-9])"), "0."),
    (re.compile(r"(?<=[0-9])(?:,?\s*\\[,! ]|\s?\{\s?,\s?\}|,\\!)\s*(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<=[0-9])\s?\{\s?,\s?\}\s?(?=[0-9])"), "."),
    (re.compile(r"\\(?:dfrac|tfrac|cfrac)(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·]"), "*"),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])|°"), ""),
    (re.compile(r"\\(?:leq|le|leqslant|leqq)(?![a-zA-Z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|ge|geqslant|geqq)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])|≠|!="), r"\\ne "),
    (re.compile(r"\\(?:b|B|v)?matrix|\{[bB]matrix\}"), "{pmatrix}"),
    (re.compile(r"−|–"), "-"),
    (re.compile(r"π|(?<![a-zA-Z\\])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"∞|\\inf(?![a-zA-Z])|(?<![a-zA-Z\\])(?:infinity|inf)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"∪"), r"\\cup "),
    (re.compile(r"√\s*([0-9]+)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)|√\s*\(([^()]*)\)"), r"\\sqrt{\1\2}"),
    (re.compile(r"\\frac\s*([0-9])\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*\\pi(?![a-zA-Z])"), r"\\frac{\\pi}"),
    (re.compile(r"\\frac\s*([0-9a-zA-Z])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*([0-9a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"\^\s*\{\s*([0-9a-zA-Z])\s*\}"), r"^\1"),
    (re.compile(r"_\s*\{\s*([0-9a-zA-Z])\s*\}"), r"_\1"),
)
_AND = re.compile(r"\\text\s*\{\s*(?:,?\s*(?:and|or))\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])", re.IGNORECASE)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_SUBSCRIPTED = r"(?:_(?:\\?\w+|\{[^{}]{1,16}\}))?"
NAMED = (
    rf"(?:(?!\\(?:{_FUNCTIONS})(?![a-zA-Z])|(?:{_FUNCTIONS})(?:\s|_|[({{]))\\?[a-zA-Z]{{1,24}}(?:\s*\{{?[a-zA-Z]{{0,24}}\}}?){_SUBSCRIPTED}'*(?:\^\{{?-1\}}?)?(?:\s*\([^()=]{{0,32}}\))?"
    rf"|\|[A-Z]{{2,3}}\||\[[A-Z]{{3,8}}\]|(?:m\s*)?\\(?:angle|triangle|overline|widehat|measuredangle)\s*\{{?\s*[A-Z]{{1,8}}\s*\}}?)"
)
"""What an answer may be the value of: `x`, `f^{-1}(2)`, `y_{\\max}`, `|AB|`, `[ABC]`; no function of a name."""
_NAME = re.compile(rf"^\s*({NAMED})\s*=(?!=)\s*")
_NAME_LAST = re.compile(rf"^\s*([^=]*[0-9][^=]*?)\s*=\s*({NAMED})\s*$")
"""`96 = y`."""
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{0,12})\.([0-9]{0,12})\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]{1,12})\s*\}|([0-9]))"
)
_GOING_ON = re.compile(r"(?<![0-9.])([0-9]{0,12})\.([0-9]{0,12}?)([0-9])\3{2,12}\s*(?:\.\.\.|\\[lc]?dots)")
_OF = re.compile(r"^\s*(?:[a-zA-Z]\w*\s*\\in(?![a-zA-Z])|\([a-zA-Z_0-9, ]*[a-zA-Z][a-zA-Z_0-9, ]*\)\s*=)\s*")
"""What says of a set, tuple or interval whose it is: `x \\in`, `(p,q) =`."""
_TWICE = re.compile(r"\\\\(?=[a-zA-Z{}])")
"""A command escaped twice, as by JSON in JSON; in a matrix it is a new row."""
_SUM = r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(rf"\+?({_SUM})(?:e([-+]?[0-9]+)|\*10\^(?:\{{?([-+]?[0-9]+)\}}?))?(?:_\{{10\}})?")
_POWER_OF_TEN = re.compile(r"(-?)10\^\{(-?[0-9]+)\}")
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
    """One of `math_units.UNITS`, where it has one."""
    is_percent: bool = False
    is_word: bool = False
    """A word or a letter, not a formula."""

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


def form_of(answer: str) -> Form:
    """The normal form of `answer`; never raises. Linear in its length but for a few short look-aheads."""
    text = answer.strip().rstrip(".").strip()
    text = text if "\\begin" in text else _TWICE.sub(r"\\", text)
    text = text if text.isascii() else text.translate(_UNICODE)
    if "\\overline" in text or "\\bar" in text or "\\dot" in text or "..." in text or "dots" in text:
        text = _GOING_ON.sub(_fraction_of, _REPEATING.sub(_fraction_of, text))
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return _form(_DROPPED.sub(" ", text.replace("\\$", " ")).strip(), 0)


def _fraction_of(match: re.Match[str]) -> str:
    """The fraction that a repeating decimal is.

    >>> _REPEATING.sub(_fraction_of, r"0.1\\overline{6}")
    '\\\\frac{15}{90}'
    """
    whole, ahead, *repeated = match.groups()
    period = next(digits for digits in repeated if digits)
    under = (10 ** len(period) - 1) * 10 ** len(ahead)
    over = int((whole + ahead + period) or "0") - int((whole + ahead) or "0")
    return rf"\frac{{{over}}}{{{under}}}"


def _form(text: str, depth: int) -> Form:
    text = text.strip().rstrip(".,;:").strip()
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
        name, text = re.sub(r"\s|\\text|[{}]", "", named[1]), text[named.end() :].strip()
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
    spelled = re.sub(r"\s+", " ", source) if is_word else _BLANKS.sub("", source)
    spelled = spelled.casefold() if is_word and len(spelled) > 1 else spelled
    return Form(spelled, source, name=name, unit=unit, is_percent=is_percent, is_word=is_word)


def _value(text: str) -> Fraction | None:
    if len(text) > 2 * MAX_DIGITS:
        return None
    text = re.sub(r"(?<=[0-9])\s+(?=[0-9]+/[0-9])", "\x00", text)
    text = _BLANKS.sub("", text)
    if match := _NUMBER.fullmatch(text):
        exponent = int(match[2] or match[3] or 0) if len(match[2] or match[3] or "") < 5 else MAX_EXPONENT + 1
        return Fraction(match[1]) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
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
