r"""Response -> the final answer as it was written. One rule for training and evaluation; pure, total, linear time.

Only what stands after the last `</think>` is read; where a thought was opened and never closed, there is no answer. In it,
the first of these that is there counts, and no later one is tried:

1. **Box**: the last outermost `\boxed{...}` or `\fbox{...}`. Of several boxes only the last counts, right or wrong; but boxes with
   nothing but a comma, a semicolon, "and" or "or" between them, and what they are of (`y =`, "for part (b)"), are one list. A last
   box that is never closed, is empty or holds another one makes the response `bad_format`.
2. **Answer tag**: what the one `<answer>...</answer>` holds, all of it. Two blocks, or half a block, is `bad_format`.
3. **Last expression**: what follows the last `####` on its line; else, in the line behind the last "answer is" or "answer:",
   and where that says nothing in all of the text, the last number or the last formula between dollar signs or `\(`, `\[`,
   whichever ends later. "11 or 12" is no answer. A response that ran into the token limit has no last expression.

A response longer than `answer.MAX_RESPONSE` is not read at all, and of rule 3 only the last `MAX_TAIL` characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinyzero_trl.answer import BLANKS, MAX_RESPONSE

MAX_ANSWER = 1000
"""Characters of an answer; the longest of MATH's is 159."""
MAX_BOXES = 32
"""Boxes at the end of a response that are looked at, so that a million of them cost no more."""
MAX_BETWEEN = 64
"""Characters between two boxes of one list."""
MAX_TAIL = 2000
"""Characters at the end of a response in which the last expression is looked for."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
_BOX_START = re.compile(r"[ \t\r\n]{0,8}\{")
_BARE_BOX = re.compile(r"[ \t]{0,8}([-+]?[0-9A-Za-z.]{1,64})")
_NUMBER = re.compile(
    r"-?\\[dtc]?frac\{[^{}]{1,64}\}\{[^{}]{1,64}\}|"
    r"(?<![\w.,\\])-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])|[0-9]+(?:,[0-9]+)*)?(?:(?<=[0-9])|\.(?=[0-9]))(?:\.?[0-9]+)?"
    r"(?:e[-+]?[0-9]+)?(?:\s?/\s?[0-9]+(?![0-9]*\.[0-9]))?\s?(?:\\?%)?"
)
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PROSE = re.compile(r"[^\\]*[a-z]{2,}\s+[a-z]+[^\\]*|[^\\\s].*\s", re.DOTALL)
"""What stands between two prices and not in a formula."""
_ANSWER = re.compile(r"answer(?: is|:)(?!.*answer(?: is|:))", re.IGNORECASE | re.DOTALL)
_BETWEEN = re.compile(
    r"(?:[\s$.]|\\q?quad|\\[,;: \\()\[\]]|\\text\s*\{|\}|(?:for )?[Pp]art \(?[0-9a-z]\)?:?)*(?:,|;|and|or)"
    r"(?:[\s$,]|and|or|\\q?quad|\\[,;: ()\[\]]|\\text\s*\{|\}|(?:for )?[Pp]art \(?[0-9a-z]\)?:?|[a-zA-Z](?:_\{?[0-9a-zA-Z]\}?)?\s?=)*"
)
"""What makes a list of the boxes around it."""
_HEDGE = re.compile(r"[0-9)}$%]\s*(?:or|and/or)\s+\S{0,3}$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Found:
    """What a response was found to say."""

    answer: str | None
    """As written, blanks around it cut off; None where there is none."""
    is_malformed: bool = False
    """There is a box or an answer tag, but not as the rule wants it."""


def find_answer(response: str, *, is_truncated: bool = False) -> Found:
    r"""The final answer of `response` by the rule above; never raises, whatever the text.

    >>> find_answer(r"<think>\boxed{1}</think> I tried \boxed{11}, so it is \boxed{\frac{1}{2}}.")
    Found(answer='\\frac{1}{2}', is_malformed=False)
    >>> find_answer("She has 3 * 4 = 12 apples.")
    Found(answer='12', is_malformed=False)
    """
    if len(response) > MAX_RESPONSE:
        return Found(None)
    start = response.rfind("</think>")
    if start < 0 and "<think>" in response:
        return Found(None)
    final = response[start + len("</think>") :] if start >= 0 else response
    if "\\boxed" in final or "\\fbox" in final:
        return _boxed(final)
    if "<answer>" in final or "</answer>" in final:
        return _tagged(final)
    if is_truncated:
        return Found(None)
    return Found(_last_expression(final[-MAX_TAIL:]))


def _boxed(text: str) -> Found:
    answers: list[str] = []
    end = 0
    for match in [*_BOX.finditer(text)][-MAX_BOXES:]:
        if match.start() < end:  # inside the box before it
            continue
        if match.start() - end > MAX_BETWEEN or not _BETWEEN.fullmatch(text, end, match.start()):
            answers = []
        opening = _BOX_START.match(text, match.end())
        if opening is None:
            bare = _BARE_BOX.match(text, match.end())
            inside, end = (bare[1], bare.end()) if bare else (None, match.end())
        else:
            inside, end = _inside(text, opening.end())
        answers.append("" if inside is None else inside.strip(BLANKS))
    answer = ", ".join(answers)
    if not all(answers) or not answer or _BOX.search(answer):
        return Found(None, is_malformed=True)
    return Found(answer)


def _inside(text: str, start: int) -> tuple[str | None, int]:
    """What stands from `start` to the brace that closes it, and where that ends; None where it is not near."""
    depth = 1
    limit = min(len(text), start + 2 * MAX_ANSWER)
    at = start
    while at < limit:
        character = text[at]
        if character == "\\":
            at += 1  # `\{` is no brace
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start:at], at + 1
        at += 1
    return None, start


def _tagged(text: str) -> Found:
    start, end = text.find("<answer>"), text.find("</answer>")
    inside = start + len("<answer>")
    is_one = 0 <= start < end and text.find("<answer>", inside) < 0 and text.find("</answer>", end + 1) < 0
    answer = text[inside:end].strip(BLANKS) if is_one else ""
    return Found(answer) if answer else Found(None, is_malformed=True)


def _last_expression(text: str) -> str | None:
    marker = text.rfind("####")
    if marker >= 0:
        return text[marker + 4 :].strip(BLANKS).split("\n")[0].strip(BLANKS) or None
    said = _ANSWER.search(text)
    line = text[said.end() :].strip(BLANKS).split("\n")[0] if said else ""
    return _last_in(line) or _last_in(text)


def _last_in(text: str) -> str | None:
    formulas = [match for match in _FORMULA.finditer(text) if match[2] is None or not _PROSE.fullmatch(match[2])]
    numbers = [*_NUMBER.finditer(text, formulas[-1].end() if formulas else 0)]
    if numbers:
        found, at = numbers[-1][0], numbers[-1].start()
    elif formulas:
        found, at = next(group for group in formulas[-1].groups() if group is not None), formulas[-1].start()
    else:
        return None
    if _HEDGE.search(text, max(0, at - 16), at):
        return None
    return found.strip(BLANKS) or None
