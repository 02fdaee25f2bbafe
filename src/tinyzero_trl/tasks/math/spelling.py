r"""Gives the characters and macros of an answer one spelling each, by rewriting text without parsing it.

Unified: Unicode and ASCII, `\dfrac` and `\frac12`, `\times` and `\cdot`, `\leqslant` and `<=`, `\mathrm` and `\text`, `0.\overline{3}` and
`0.333...`, `{}^7C_3` and `\binom{7}{3}`, money signs and units. Removed: delimiters, spacing, sizes, colours, degree signs. Written out: products
without a sign, `7(8)` and `2^4 5^2`, which math-verify would read as mixed or longer numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

_FRACTIONS = {
    sign: rf"\frac{{{over}}}{{{under}}}"
    for sign, over, under in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "112131234151357", "233445555668888", strict=True)
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
_SIGNS = {
    "±": "pm", "∓": "mp", "∈": "in", "∅": "emptyset", "∪": "cup", "∩": "cap", "∞": "infty", "≤": "le", "⩽": "le", "≦": "le", "≥": "ge", "⩾": "ge",
    "≧": "ge", "≠": "ne", "≈": "approx", "°": "degree", "º": "degree", "∠": "angle", "△": "triangle", "⊤": "top", "⌊": "lfloor", "⌋": "rfloor",
    "⌈": "lceil", "⌉": "rceil", "…": "ldots", "∖": "setminus", "∨": "lor", "∧": "land", "∑": "sum", "∏": "prod", "∫": "int",
}  # fmt: skip
_UNICODE = str.maketrans(
    {
        **_FRACTIONS,
        **{sign: rf"\{name} " for sign, name in (_GREEK | _SIGNS).items()},
        **{sign: rf"\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
        **{chr(0xFF01 + k): chr(0x21 + k) for k in range(94)},
        **dict.fromkeys("−–—﹣‐‑", "-"),
        **dict.fromkeys("\u00a0\u2009\u202f\u2007\u2002\u2003\u2004\u2005\u2006\u2008\u200a\u3000", " "),
        **dict.fromkeys("\u200b\u2060\ufeff", ""),
        **dict.fromkeys("×·⋅∙✕", "*"),
        **dict.fromkeys("′’", "'"),
        **dict.fromkeys("÷⁄∕", "/"),
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ", "0123456789+-ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙᵢ", "0123456789ni")

_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "¢": "cent"}
_CURRENCY = r"\\?\$|[€£¥₹¢]|\\text\s*\{\s*(?:\\?\$|[€£¥₹¢])\s*\}|\\(?:pounds|euro)(?![a-zA-Z])"
_MONEY = re.compile(
    rf"\s*(-?)\s*({_CURRENCY})\s*(-?[0-9.][0-9.,{{}}!\\]*)(\s*(?:\\text\s*\{{)?\s*(?:hundred|thousand|million|billion|trillion)\s*\}}?)?\s*"
)
_MONEY_BEHIND = re.compile(r"\s*(-?[0-9.][0-9.,{}!\\]*?)\s*([€£¥₹¢])\s*")

_TWICE = re.compile(r"\\\\(?=[a-zA-Z{}])")
"""A backslash escaped twice, as by JSON in JSON; in a matrix it starts a new row."""
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{0,12})\.([0-9]{0,12})\\(?:overline|bar|dot)\s*(?:\{\s*([0-9]{1,12})\s*\}|([0-9]))(?![0-9])"
    r"|(?<![0-9.a-zA-Z)])([0-9]{0,12})\.()\(([0-9]{1,12})\)(?![0-9])"
)
_GOING_ON = re.compile(
    r"(?<![0-9.])([0-9]{0,12})\.([0-9]{0,12}?)(?:([0-9])\3{2,12}|([0-9]{2,6})\4{1,5})\s*(?:\.\.\.|\\[lc]?dots)"
)
"""Repeating decimals such as `0.1666...` and `0.4545...`."""

_MACROS = {
    **dict.fromkeys(
        ["left", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl", "Biggr", "right", "boldsymbol", "bm", "mathsf", "mathit", "mathtt", "mathcal", "mathnormal", "pmb", "underline", "emph", "uline", "underbrace", "overbrace"], ""
    ),
    **dict.fromkeys(
        ["big", "bigg", "Big", "Bigg", "displaystyle", "textstyle", "scriptstyle", "limits", "quad", "qquad", "large", "Large", "LARGE", "huge", "Huge", "small",
         "tiny", "normalsize", "rm", "bf", "it", "sf", "tt", "cal", "bfseries", "itshape"], " "
    ),
    **dict.fromkeys(["textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup", "textsl", "mathrm", "mbox", "mathbf", "hbox", "operatorname"], r"\text"),
    **dict.fromkeys(["dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"], r"\frac"),
    **dict.fromkeys(["dbinom", "tbinom"], r"\binom"),
    **dict.fromkeys(["mid", "vert", "lvert", "rvert"], "|"),
    **dict.fromkeys(["varnothing", "O"], r"\emptyset "),
    **dict.fromkeys(["cdot", "times", "ast"], "*"),
    **dict.fromkeys(["leq", "le", "leqslant", "leqq"], r"\le "),
    **dict.fromkeys(["geq", "ge", "geqslant", "geqq"], r"\ge "),
    **dict.fromkeys(["neq", "ne"], r"\ne "),
    **{"bmod": r"\mod ", "div": "/", "lt": "<", "gt": ">", "phi": r"\varphi ", "epsilon": r"\varepsilon ", "inf": r"\infty ", "lg": r"\log_{10} ", "degree": r"^\circ "},
}  # fmt: skip
"""The spelling of each command that has no argument."""
_MACRO = re.compile(r"\\([a-zA-Z]+)")

_ANY = r"(?![a-zA-Z])"
_DEGREE = rf"(?:\^\s*(?:\{{\s*\\circ\s*\}}|\\circ{_ANY})|\\text\s*\{{\s*degrees?\s*\}})"
_TRIGONOMETRIC = r"\\(sin|cos|tan|cot|sec|csc)\s*((?:\^\s*\{?[0-9]\}?)?)\s*"
_ANGLE = rf"(-?[0-9]{{1,6}}(?:\.[0-9]{{1,6}})?)\s*{_DEGREE}\s*"
_ORDINAL = r"(?:st|nd|rd|th)"
_NUMERALS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
    "sixteen": 16,
}

_SPELLINGS: tuple[tuple[str, str, str | Callable[[re.Match[str]], str]], ...] = (
        # Dressing.
        ("\\", r"\\(?:mathrm|mathit|operatorname)\s*\{\s*([ide])\s*\}", r"\1"),  # before these are words
        ("\\", r"\\(?:left|right)\.", ""),
        ("\\", r"\\color\s*(?:\{[^{}]{0,32}\}|\[[^\[\]]{0,32}\]\{[^{}]{0,32}\})|\\(?:textcolor|colorbox)\s*\{[^{}]{0,32}\}", ""),
        ("\\", r"\\[hv]?phantom\s*\{[^{}]{0,64}\}|\\[hv]space\*?\s*\{[^{}]{0,16}\}", ""),
        ("{", r"(?<!\\)\{\}", ""),
        ("{", r"(?<=[0-9])\{\s*:\s*\}(?=[0-9])", ":"),
        ("\\", r"^\s*\\text\s*\{\s*(-?[0-9][^{}]*)\}\s*$", r"\1"),
        ("**", r"\*\*(?=[^*]*\*\*\s*$)|(?<=[^*\s])\*\*\s*$", ""),
        ("\\", r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sl)?|mathrm|mbox|mathbf|hbox)(?=\s*\{[^{}]*\\[a-zA-Z])", ""),  # around a formula
        ("\\", r"\\operatorname\*(?=\s*\{)", r"\\text"),
        ("\\", _MACRO.pattern, lambda match: _MACROS.get(match[1], match[0])),
        # Functions.
        ("\\", r"(?i)\\text\s*\{\s*(gcd|lcm|max|min|sin|cos|tan|cot|sec|csc|log|ln|det)\s*\}", lambda match: f"\\{match[1].lower()} "),
        ("c", r"(?<![a-zA-Z\\])(gcd|lcm)(?=\s*[(\[])", r"\\\1 "),
        ("\\", r"(\\(?:gcd|lcm|max|min))\s*(?:\[([^\[\]()]{1,64})\]|\\\{([^{}()\\]{1,64})\\\})", r"\1(\2\3)"),
        ("\\", r"\\(sin|cos|tan)\s*\^\s*\{\s*-\s*1\s*\}", r"\\arc\1 "),
        # Marks that make another thing: primes, transposes, bases.
        ("\\", r"\^\s*\{\s*((?:\\prime\s*)+)\}|\^\s*\\prime(?![a-zA-Z])|\\prime(?![a-zA-Z])", lambda match: "'" * match[0].count("prime")),
        ("^", r"\^\s*(?:\{\s*(?:\\intercal|\\top|\\text\s*\{?T\}?|\{?T\}?)\s*\}|\\intercal|\\top)(?![a-zA-Z])", "^T"),
        ("_", r"\(\s*([0-9A-Z]+)\s*\)\s*_\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))", r"\1_{\2\3}"),
        ("_", rf"(?<=[0-9])\s*_\s*\{{\s*\\text\s*\{{\s*({'|'.join(_NUMERALS)})\s*\}}\s*\}}", lambda match: f"_{{{_NUMERALS[match[1]]}}}"),
        # Degrees, ordinals, percent.
        (
            "\\",
            rf"{_DEGREE}\s*(?:\\text\s*\{{\s*([CFK])\s*\}}|([CFK]){_ANY})|\\text\s*\{{\s*degrees?\s+(?i:([cf])(?:elsius|ahrenheit)?)\s*\}}",
            lambda match: rf"\text{{ deg{(match[1] or match[2] or match[3]).upper()}}}",
        ),
        (
            "\\",
            rf"{_TRIGONOMETRIC}(?:\(\s*{_ANGLE}\)|\{{\s*{_ANGLE}\}}|{_ANGLE})",
            lambda match: rf"\{match[1]}{match[2]}(\frac{{{match[3] or match[4] or match[5]}\pi}}{{180}}) ",
        ),
        ("\\", rf"^\s*(-?[0-9]+(?:\.[0-9]+)?)\s*{_DEGREE}\s*$", r"\1\\text{ deg}"),
        ("\\", _DEGREE, ""),
        ("", rf"(?<=[0-9])\s*(?:\^\s*\{{?\s*(?:\\text\s*\{{\s*{_ORDINAL}\s*\}}|{_ORDINAL})\s*\}}?|{_ORDINAL}{_ANY}|\\text\s*\{{\s*{_ORDINAL}\s*\}})", ""),
        ("cent", r"(?<=[0-9])\s*(?:\\text\s*\{\s*per ?cent\s*\}|per ?cent(?![a-zA-Z]))", r"\\%"),
        # Binomials.
        (
            "\\",
            r"\{?\s*([0-9a-zA-Z]{1,6})\s*\\choose\s*([0-9a-zA-Z]{1,6})\s*\}|\{\s*\{([^{}]{1,16})\}\s*\\choose\s*\{([^{}]{1,16})\}\s*\}",
            r"\\binom{\1\3}{\2\4}",
        ),
        ("\\", r"\\binom\s*(?:([0-9])\s*([0-9])|\{([^{}]{1,16})\}\s*([0-9])|([0-9])\s*\{([^{}]{1,16})\})", r"\\binom{\1\3\5}{\2\4\6}"),
        (
            "C",
            r"(?<![0-9a-zA-Z)}])[\^_]\s*\{?([0-9]{1,4})\}?\s*C_\s*\{?([0-9]{1,4})\}?|(?<![0-9a-zA-Z\\])C\(\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*\)",
            r"\\binom{\1\3}{\2\4}",
        ),
        ("\\", r"\\\{\s*\\\}|\\text\s*\{\s*(?:the )?empty set\s*\}", r"\\emptyset "),
        # Fractions and roots.
        ("\\", r"\\frac\s*\{\s*\\text\s*\{([^{}]{1,16})\}\s*\}\s*\{\s*\\text\s*\{([^{}]{1,16})\}\s*\}", r"\\text{ \1/\2}"),
        ("^", r"(?<![0-9a-zA-Z)}])\^\s*\{?([0-9]{1,6})\}?\s*/\s*_\s*\{?([0-9]{1,6})\}?", r"\\frac{\1}{\2}"),
        ("\\", r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}"),
        ("\\", r"\\frac\s*\\pi(?![a-zA-Z])", r"\\frac{\\pi}"),
        ("\\", r"\\frac\s*([0-9a-zA-Z])\s*\{", r"\\frac{\1}{"),
        ("\\", r"(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])", r"\1{\2}"),
        ("sqrt", r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        ("\\", r"\\sqrt\s*(\[[^\[\]]{1,16}\])\s*([0-9a-zA-Z])", r"\\sqrt\1{\2}"),
        ("\\", r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}"),
        # Products without a sign.
        ("\\", r"\\log\s*_\s*(\{[^{}]{1,16}\}|[0-9a-zA-Z])\s*(?:\{\s*([0-9]+(?:\.[0-9]+)?)\s*\}|([0-9]+(?:\.[0-9]+)?))(?![0-9.^!{])", r"\\log_\1(\2\3)"),
        ("(", r"\\pi\s*\(", r"\\pi*("),
        ("(", r"(?<![_0-9.,a-zA-Z^{])([0-9]+(?:\.[0-9]+)?)\s*\(", r"\1*("),
        ("[", r"(?<![_0-9.,a-zA-Z^{])([0-9]+)\s*\[([^\[\],]{1,32})\]", r"\1*(\2)"),
        (")", r"(?<=[0-9])\)\s*(?:\((?=[-0-9\\])|(?=[0-9]))", lambda match: ")*(" if match[0][-1] == "(" else ")*"),
        (
            "^",
            r"(\^\s*(?:(?<!_.\^)(?<!\}\^)[0-9])\s+|(?<!_.)(?<!\})\^\s*\{[^{}]{1,16}\}\s*)(?=[0-9])",
            lambda match: match[1].rstrip() + "*",
        ),
        ("_", r"(?<!log)(?<!int)(_\s*\{[0-9a-zA-Z]{1,8}\})\s*(?=[0-9])", r"\1*"),
        ("i", r"(?<![a-zA-Z\\_{])i\s*(?=\()", "i*"),
        # Numbers.
        ("{", r"(?<![0-9.,])0\s?\{\s?,\s?\}\s?(?=[0-9])", "0."),
        ("", r"(?<=[0-9])(?:,?\s*\\[,! ]|\s?\{\s?,\s?\}|,\\!)\s*(?=[0-9]{3}(?![0-9]))", ","),
        ("{", r"(?<=[0-9])\s?\{\s?,\s?\}\s?(?=[0-9])", "."),
        # Signs.
        ("**", r"\*\*", "^"),
        ("=", r"<=", r"\\le "),
        ("=", r">=", r"\\ge "),
        ("=", r"!=", r"\\ne "),
        ("matrix", r"\{[bB]matrix\}", "{pmatrix}"),
        ("pi", r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        ("inf", r"(?<![a-zA-Z\\])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
        ("^", r"\^\s*\{\s*([0-9a-zA-Z])\s*\}(?![0-9])", r"^\1"),
        ("_", r"_\s*\{\s*([0-9a-zA-Z])\s*\}(?![0-9])", r"_\1"),
        # Delimiters and spacing.
        ("", r"(?<!\\)\\[,;:! ]|(?<!\\)\\\s|~|\\\(|\\\)|\\\[|\\\]|\\?\$", " "),
)  # fmt: skip
"""(text that must occur, pattern, replacement), applied in this order; each takes linear time except for short look-aheads."""
_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}
_BEYOND_ASCII: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+"), lambda match: "^{" + match[0].translate(_SUPERSCRIPTS) + "}"),
    (re.compile(r"[₀₁₂₃₄₅₆₇₈₉ₙᵢ]+"), lambda match: "_{" + match[0].translate(_SUBSCRIPTS) + "}"),
    (
        re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|([0-9]+|[a-zA-Z]))"),
        lambda match: rf"\sqrt{_ROOTS[match[1]]}{{{match[2] or match[3]}}}",
    ),
    (re.compile("[€£¥₹]"), " "),
)
"""Characters whose LaTeX depends on their neighbours."""
_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
"""Plain numbers, which have only one spelling."""


def cleaned(answer: str) -> str:
    r"""The answer in one spelling; never raises.

    >>> cleaned(r"\left(\dfrac12, 0.\overline{3}\right)"), cleaned("€5"), cleaned("7(8)"), cleaned("2³·√3")
    ('(\\frac{1}{2}, \\frac{3}{9})', '5\\text{ euro}', '7*(8)', '2^3*\\sqrt{3}')
    """
    text = answer.strip()
    if _PLAIN.fullmatch(text):
        return text
    text = text if text.endswith("...") else text.rstrip(".").strip()
    text = text if "\\begin" in text else _TWICE.sub(r"\\", text)
    if len(text) > 2 and text[0] == text[-1] == "$" and text[1:-1].count("$") == text[1:-1].count("\\$"):
        text = text[1:-1]
    text = text if text.isascii() else text.translate(_UNICODE)
    if money := _MONEY.fullmatch(text):
        sign, currency, number, scale = money.groups()
        scale = " " + re.sub(r"[^a-z]", "", scale.replace("text", "")) if scale else ""
        text = rf"{sign}{number}\text{{{scale} {_currency(currency)}}}"
    elif money := _MONEY_BEHIND.fullmatch(text):
        text = rf"{money[1]}\text{{ {_currency(money[2])}}}"
    if "\\overline" in text or "\\bar" in text or "\\dot" in text or "..." in text or "dots" in text or ".(" in text:
        text = _GOING_ON.sub(_fraction_of, _REPEATING.sub(_fraction_of, text))
    if not text.isascii():
        for pattern, spelling in _BEYOND_ASCII:
            text = pattern.sub(spelling, text)
    for needed, pattern, spelling in _compiled():
        if needed in text:
            text = pattern.sub(spelling, text)
    return re.sub(r"\s+", " ", text).strip()


@lru_cache(maxsize=1)
def _compiled() -> list[tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]]]:
    """`_SPELLINGS` with compiled patterns; not compiled at import, because that takes 0.05 s."""
    return [(needed, re.compile(pattern), spelling) for needed, pattern, spelling in _SPELLINGS]


def _currency(sign: str) -> str:
    return next(
        (name for character, name in _CURRENCIES.items() if character in sign),
        "euro" if "euro" in sign else "pound",
    )


def _fraction_of(match: re.Match[str]) -> str:
    """The fraction of a repeating decimal.

    >>> _REPEATING.sub(_fraction_of, r"0.1\\overline{6}")
    '\\\\frac{15}{90}'
    """
    whole, ahead, *repeated = [group for group in match.groups() if group is not None]
    period = next(digits for digits in repeated if digits)
    under = (10 ** len(period) - 1) * 10 ** len(ahead)
    over = int((whole + ahead + period) or "0") - int((whole + ahead) or "0")
    return rf"\frac{{{over}}}{{{under}}}"
