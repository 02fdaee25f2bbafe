r"""Turns a set of real numbers in an answer into one spelling, a union of intervals; text only, exact if the ends are rational.

It reads intervals, `\mathbb{R}`, sets of numbers, inequalities about one bare name, `x \ne 3`, their unions and intersections (`\cup`, `\cap`,
"or", "and", `\setminus`) and set builders. It does not read `x^2 < 4`, which would reward an answer that repeats the problem.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

from tinyzero_trl.tasks.math.normal_form import form_of, split_at

MAX_PIECES = 16
"""Most intervals of one set."""

_GREEK = r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|(?:var)?phi|chi|psi|omega|ell)(?![a-zA-Z])"
_NAME = rf"(?:[a-zA-Z]|{_GREEK})\s*(?:_(?:\{{[0-9a-zA-Z]{{1,8}}\}}|[0-9a-zA-Z]))?(?:\s*\((?:[a-zA-Z]|{_GREEK})\s*\))?"
_RELATION = re.compile(r"\\[lg]e(?![a-zA-Z])|[<>]")
_IS_SET = re.compile(
    r"[<>]|\\\{|\\(?:in|[lgn]e|c[au]p|setminus|emptyset|mathbb|lor|land|vee|wedge)(?![a-zA-Z])|^\s*[(\[].*,.*[)\]]\s*$",
    re.DOTALL,
)
"""Signs of a set; a text without any of them describes none."""
_MEMBER = re.compile(rf"\s*({_NAME})\s*\\in(?![a-zA-Z])\s*")
_BUILDER = re.compile(
    rf"\\\{{\s*({_NAME})\s*(?:\\in\s*\\mathbb\s*\{{?R\}}?\s*)?(?:\||:|\\colon(?![a-zA-Z]))\s*(.*)\\\}}", re.DOTALL
)
_REALS = re.compile(r"\\mathbb\s*(?:\{\s*R\s*\}|R)")
_WITHOUT = re.compile(r"(\\mathbb\s*(?:\{\s*R\s*\}|R))\s*(?:\\setminus|\\backslash|-|\\)\s*\\\{(.*)\\\}", re.DOTALL)
_UNEQUAL = re.compile(rf"\s*({_NAME})\s*\\ne(?![a-zA-Z])\s*(.+)", re.DOTALL)
_EQUAL = re.compile(rf"\s*({_NAME})\s*=\s*(.+)", re.DOTALL)
_OR = re.compile(
    r"\\text\s*\{\s*,?\s*or\s*\}|(?<![a-zA-Z\\])or(?![a-zA-Z])|\\(?:cup|lor|vee)(?![a-zA-Z])", re.IGNORECASE
)
_AND = re.compile(
    r"\\text\s*\{\s*,?\s*and\s*\}|(?<![a-zA-Z\\])and(?![a-zA-Z])|\\(?:cap|land|wedge)(?![a-zA-Z])", re.IGNORECASE
)
_CONSTANT = re.compile(
    r"(?:\\(?:sqrt|frac|pi|infty|log|ln|cdot|left|right)(?![a-zA-Z])|(?<![a-zA-Z])e(?![a-zA-Z])|[^a-zA-Z\\<>=|])+"
)


@dataclass(frozen=True, slots=True)
class End:
    """One end of an interval."""

    text: str
    value: Fraction | float | None
    """None if the end is neither rational nor infinite."""
    is_open: bool


@dataclass(frozen=True, slots=True)
class Numbers:
    """A union of intervals."""

    pieces: tuple[tuple[End, End], ...]
    names: frozenset[str]
    """The names in its inequalities."""
    is_sure: bool
    """False if it may be something else: `(1,2)` may be a point, `\\{1,2\\}` a list."""

    @property
    def is_exact(self) -> bool:
        return all(end.value is not None for piece in self.pieces for end in piece)

    def spelled(self) -> str:
        """The set as LaTeX; equal sets have the same text if they are exact."""
        if not self.pieces:
            return r"\emptyset"
        return r"\cup ".join(
            rf"\{{{low.text}\}}"
            if low.text == high.text
            else f"{'(' if low.is_open else '['}{low.text},{high.text}{')' if high.is_open else ']'}"
            for low, high in self.pieces
        )


def as_sets(gold: str, answer: str) -> tuple[str, str] | None:
    """Both as unions of intervals if both are sets of numbers about one name, and one of them surely is; else None.

    gold, answer: results of `spelling.cleaned`.
    """
    if not (_IS_SET.search(gold) and _IS_SET.search(answer)):
        return None
    one, other = read(gold), read(answer)
    if one is None or other is None or not (one.is_sure or other.is_sure) or len(one.names | other.names) > 1:
        return None
    return one.spelled(), other.spelled()


def read(text: str) -> Numbers | None:
    r"""The set that `text` describes, or None if it is none of those in the head of this file.

    >>> read(r"x<2\text{ or }x\ge 9").spelled(), read(r"\{t : 1 < t < 5/2\}").spelled(), read("x^2<4")
    ('(-\\infty,2)\\cup [9,\\infty)', '(1,5/2)', None)
    """
    alternatives = split_at(text, _OR)
    if len(alternatives) > MAX_PIECES:
        return None
    found = [_conjunction(part) for part in alternatives]
    if any(part is None for part in found):
        return None
    parts = [part for part in found if part is not None]
    if len(parts) == 1:
        return parts[0]
    return _united(parts)


def _conjunction(text: str) -> Numbers | None:
    written = split_at(text, _AND)
    if len(written) > MAX_PIECES:
        return None
    members = [_one(part) for part in written]
    if len(members) == 1 and members[0] is None:
        # `x < 2, x > 9` means one of them, as no number is both.
        written = split_at(text, re.compile(","))
        members = [_one(part) for part in written[: MAX_PIECES + 1]]
        if not 2 <= len(members) <= MAX_PIECES or any(member is None or not member.names for member in members):
            return None
        listed = [member for member in members if member is not None]
        both = _intersected(listed)
        return _united(listed) if both is not None and not both.pieces else both
    if any(member is None for member in members):
        return None
    parts = [member for member in members if member is not None]
    return parts[0] if len(parts) == 1 else _intersected(parts)


def _one(text: str) -> Numbers | None:
    """An interval, an inequality, numbers in braces, or all real numbers."""
    text = text.strip()
    if (builder := _BUILDER.fullmatch(text)) and "\\{" not in builder[2]:
        inside = read(builder[2])
        return Numbers(inside.pieces, inside.names | {_bare(builder[1])}, is_sure=True) if inside is not None else None
    if text == r"\emptyset":
        return Numbers((), frozenset(), is_sure=True)
    names: frozenset[str] = frozenset()
    if member := _MEMBER.match(text):
        names, text = frozenset((_bare(member[1]),)), text[member.end() :]
    if _REALS.fullmatch(text):
        return Numbers((_everything(),), names, is_sure=True)
    if without := _WITHOUT.fullmatch(text):
        return _all_but(without[2], names)
    if unequal := _UNEQUAL.fullmatch(text):
        return _all_but(unequal[2], frozenset((_bare(unequal[1]),)))
    if (equal := _EQUAL.fullmatch(text)) and _CONSTANT.fullmatch(equal[2]) and "," not in equal[2]:
        end = _end(equal[2], is_open=False)
        return Numbers(((end, end),), frozenset((_bare(equal[1]),)), is_sure=True)
    if text.startswith("\\{") and text.endswith("\\}"):
        points = [point for point in split_at(text[2:-2], re.compile(",")) if point.strip()]
        if not points or not all(_CONSTANT.fullmatch(point) for point in points):
            return None
        return _merged([(_end(point, is_open=False),) * 2 for point in points], names, is_sure=False)
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        ends = split_at(text[1:-1], re.compile(","))
        if len(ends) != 2 or not all(_CONSTANT.fullmatch(end) for end in ends):
            return None
        low, high = _end(ends[0], is_open=text[0] == "("), _end(ends[1], is_open=text[-1] == ")")
        is_half_open = (text[0] == "(") != (text[-1] == ")")
        return _interval(low, high, names, is_sure=bool(names) or is_half_open or "infty" in text)
    return _inequality(text)


def _inequality(text: str) -> Numbers | None:
    relations = _RELATION.findall(text)
    sides = [side.strip() for side in _RELATION.split(text)]
    if not 1 <= len(relations) <= 2 or len({_is_less(relation) for relation in relations}) > 1:
        return None
    if not _is_less(relations[0]):
        sides, relations = sides[::-1], relations[::-1]
    at = next((index for index, side in enumerate(sides) if re.fullmatch(_NAME, side)), -1)
    if (
        at < 0
        or (len(sides) == 3 and at != 1)
        or not all(_CONSTANT.fullmatch(side) for index, side in enumerate(sides) if index != at)
    ):
        return None
    opens = ["e" not in relation for relation in relations]
    low = _end(sides[at - 1], is_open=opens[at - 1]) if at > 0 else _end(r"-\infty", is_open=True)
    high = _end(sides[at + 1], is_open=opens[at]) if at + 1 < len(sides) else _end(r"\infty", is_open=True)
    return _interval(low, high, frozenset((_bare(sides[at]),)), is_sure=True)


def _is_less(relation: str) -> bool:
    return relation in ("<", r"\le")


def _bare(name: str) -> str:
    return re.sub(r"\s", "", name)


def _end(text: str, *, is_open: bool) -> End:
    text = text.strip().lstrip("+")
    if text in (r"\infty", r"-\infty"):
        return End(text, float("inf") if text[0] != "-" else float("-inf"), is_open=True)
    value = form_of(text).value
    return End(str(value) if value is not None else re.sub(r"\s", "", text), value, is_open)


def _everything() -> tuple[End, End]:
    return _end(r"-\infty", is_open=True), _end(r"\infty", is_open=True)


def _interval(low: End, high: End, names: frozenset[str], *, is_sure: bool) -> Numbers | None:
    """The interval, or None if nothing lies between its ends."""
    if low.value is not None and high.value is not None and not low.value < high.value:
        return None
    return Numbers(((low, high),), names, is_sure)


def _all_but(text: str, names: frozenset[str]) -> Numbers | None:
    points = [_end(point, is_open=True) for point in split_at(text, re.compile(","))]
    if not points or any(not isinstance(point.value, Fraction) for point in points):
        return None
    low, high = _everything()
    ends = [low, *sorted(points, key=lambda point: point.value or Fraction(0)), high]
    return Numbers(tuple(itertools.pairwise(ends)), names, is_sure=True)


def _united(parts: list[Numbers]) -> Numbers | None:
    return _merged(
        [piece for part in parts for piece in part.pieces],
        frozenset().union(*(part.names for part in parts)),
        is_sure=True,
    )


def _merged(pieces: list[tuple[End, End]], names: frozenset[str], *, is_sure: bool) -> Numbers | None:
    """The union of `pieces`: sorted and joined where they meet if all ends are exact, else as written."""
    if len(names) > 1 or len(pieces) > MAX_PIECES:
        return None
    if not Numbers(tuple(pieces), names, is_sure).is_exact:
        return Numbers(tuple(sorted(pieces, key=lambda piece: piece[0].text)), names, is_sure)
    joined: list[tuple[End, End]] = []
    for low, high in sorted(pieces, key=lambda piece: (piece[0].value, piece[0].is_open)):
        if joined and _meet(joined[-1][1], low):
            before = joined[-1][1]
            joined[-1] = (joined[-1][0], max(before, high, key=lambda end: (end.value, not end.is_open)))
        else:
            joined.append((low, high))
    return Numbers(tuple(joined), names, is_sure)


def _meet(high: End, low: End) -> bool:
    assert high.value is not None
    assert low.value is not None
    return low.value < high.value or (low.value == high.value and not (low.is_open and high.is_open))


def _intersected(parts: list[Numbers]) -> Numbers | None:
    """The intersection of `parts`; None if ends cannot be compared."""
    names = frozenset().union(*(part.names for part in parts))
    if len(names) > 1:
        return None
    pieces = list(parts[0].pieces)
    for part in parts[1:]:
        found = [_overlap(one, other) for one in pieces for other in part.pieces]
        if any(piece is None for piece in found) or len(found) > MAX_PIECES**2:
            return None
        pieces = [piece for piece in found if piece is not None and not _is_empty(piece)]
    return Numbers(tuple(pieces), names, is_sure=True)


def _overlap(one: tuple[End, End], other: tuple[End, End]) -> tuple[End, End] | None:
    low = _larger(one[0], other[0], float("-inf"), 1)
    high = _larger(one[1], other[1], float("inf"), -1)
    return None if low is None or high is None else (low, high)


def _larger(one: End, other: End, neutral: float, sign: int) -> End | None:
    """The end of the smaller interval. sign: 1 for low ends, -1 for high ones. None if the two cannot be compared."""
    if one.value == neutral:
        return other
    if other.value == neutral or one == other:
        return one
    if one.value is None or other.value is None:
        return None
    return max(one, other, key=lambda end: (sign * end.value, end.is_open))  # type: ignore[operator]


def _is_empty(piece: tuple[End, End]) -> bool:
    low, high = piece
    if low.value is None or high.value is None:
        return False
    return low.value > high.value or (low.value == high.value and (low.is_open or high.is_open))
