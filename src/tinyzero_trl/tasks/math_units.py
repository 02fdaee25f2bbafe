"""Units of an answer: taken off, and compared where both sides have a known one."""

from __future__ import annotations

import re

_UNITS = (
    *("mm millimeter millimeters", "cm centimeter centimeters", "m meter meters", "km kilometer kilometers"),
    *("in inch inches", "ft foot feet", "yd yard yards", "mi mile miles", "s sec second seconds", "min minute minutes"),
    *("h hr hour hours", "day days", "week weeks", "month months", "year years", "g gram grams"),
    *("kg kilogram kilograms", "lb pound pounds", "oz ounce ounces", "cent cents", "dollar dollars"),
    *("a.m. am", "p.m. pm"),
)
UNITS = {unit: names.split()[0] for names in _UNITS for unit in names.split()}
"""Units of which two different ones are never the same answer; others are not looked at."""

_UNIT = re.compile(r"(?<=[0-9a-zA-Z})])\s*\\text\s*\{([^{}]*)\}(?:\s*\^\s*\{?[23]\}?)?\s*\.?\s*$")
_PLAIN_UNIT = re.compile(r"^(\$?-?[0-9][0-9.,/]*)\s+([a-zA-Z][a-zA-Z]+(?:[ /][a-zA-Z]+){0,4})(?:\^[23])?\s*\.?$")
_CLOSE_UNIT = re.compile(r"^(-?[0-9][0-9.]*)([a-z]{2,12})(?:\^[23])?$")


def without_unit(text: str) -> tuple[str, str]:
    r"""`text` without the unit at its end, and the unit's first name in `UNITS` where it is there, else "".

    `\text{...}` and words behind a blank are units; right behind a number only those of `UNITS`, of two letters or more.

    >>> without_unit(r"5 \text{ centimeters}"), without_unit("60 apples"), without_unit("5cm"), without_unit("5m")
    (('5', 'cm'), ('60', ''), ('5', 'cm'), ('5m', ''))
    """
    unit = ""
    if found := _UNIT.search(text):
        text, unit = text[: found.start()], found[1]
    elif (found := _PLAIN_UNIT.match(text)) or ((found := _CLOSE_UNIT.match(text)) and found[2] in UNITS):
        text, unit = found[1], found[2]
    return text, UNITS.get(unit.strip().lower().split("^")[0], "")
