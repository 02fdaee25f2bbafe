"""Bare reference answers and levels out of what data sets call so."""

from __future__ import annotations

import re
from typing import Any

_GSM8K = re.compile(r"####\s*(.+?)\s*\Z", re.DOTALL)
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")


def bare(text: str) -> str:
    r"""The answer alone: what follows GSM8K's `####`, or the inside of the last \boxed, or `text` without its dollars.

    Commas go only where they separate thousands. "" where there is none.

    >>> bare("48/2 = <<48/2=24>>24\n#### 1,072"), bare(r"so $x=\boxed{\frac{1}{2}}$."), bare("$(1,2)$")
    ('1072', '\\frac{1}{2}', '(1,2)')
    """
    if match := _GSM8K.search(text):
        text = match[1].rsplit("####", 1)[-1].strip().lstrip("$")
    elif (inside := last_boxed(text)) is not None:
        text = inside
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        text = text[1:-1].strip()
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def last_boxed(text: str) -> str | None:
    r"""The inside of the last \boxed{...} or \fbox{...} whose braces close, or of `\boxed 5`; None where there is none."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*", text))):
        at = match.end()
        if text[at : at + 1] != "{":
            if short := re.match(r"[^\s${}.]+", text[at:]):
                return short[0]
            continue
        depth = 0
        for end in range(at, len(text)):
            if text[end] in "{}" and text[end - 1] != "\\":
                depth += 1 if text[end] == "{" else -1
                if depth == 0:
                    return text[at + 1 : end].strip()
    return None


def level_of(value: Any) -> str:
    """The number at the end of a level, or "".

    >>> level_of("Level 5"), level_of(3), level_of(None), level_of("Level ?")
    ('5', '3', '', '')
    """
    match = re.search(r"([0-9]+)(\.0*)?\s*\Z", "" if value is None else str(value))
    return match[1] if match else ""
