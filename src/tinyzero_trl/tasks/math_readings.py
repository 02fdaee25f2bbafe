r"""What one side may also be read as where the other side is of that kind; text only.

- A decimal comma in an answer to a gold with a decimal point: `1000,99` is `1000.99`, and `1,2` is not `6/5`. Not where the comma may separate thousands (`1,234`) and
  not in golds, where `1,2` is a list.
- A letter behind a number and a blank as a unit, in an answer to a gold that is a number: `30 s` is `30`; `30s` is a product.
- An inequality about one bare name as the interval it describes: `1 < x \le 2` is `(1,2]`, `x \ge 3` is `[3,\infty)`. `x^2 < 4` is
  not `(-2,2)`: that would pay for the problem's own words.
"""

from __future__ import annotations

import re

from tinyzero_trl.tasks.math_normal_form import Form, form_of

_DECIMAL_COMMA = re.compile(r"[-+]?(?:[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|(?:0|[0-9]{4,}),[0-9]{3})")
_LETTER_UNIT = re.compile(r"([-+]?[0-9][0-9.,]*)\s+([mgsh])")
_RELATION = r"\s*(<|>|\\[lg][et](?![a-zA-Z]))\s*"
_NAME = r"[a-zA-Z](?:_\{?[0-9a-zA-Z]\}?)?(?:\([a-zA-Z]\))?"
_BETWEEN = re.compile(rf"([^<>=]+?){_RELATION}{_NAME}{_RELATION}([^<>=]+)")
_ONE_SIDED = re.compile(rf"{_NAME}{_RELATION}([^<>=]+)|([^<>=]+?){_RELATION}{_NAME}")
_INTERVALS = ("()", "(]", "[)", "[]")
_COMMAND = re.compile(r"\\[a-zA-Z]+")


def alike(gold: Form, form: Form, *, written: str) -> tuple[Form, Form]:
    """The two, or what one of them may also be read as. written: the answer as the response has it."""
    if form.parts and not gold.parts:
        if gold.value is not None and "." in gold.source and _DECIMAL_COMMA.fullmatch(written):
            return gold, form_of(written.replace(",", "."))
        return (interval(gold) if form.brackets in _INTERVALS else None) or gold, form
    if gold.value is not None and (found := _LETTER_UNIT.fullmatch(written)):
        return gold, form_of(rf"{found[1]}\text{{ {found[2]}}}")
    if gold.parts and not form.parts and gold.brackets in _INTERVALS:
        return gold, interval(form) or form
    return gold, form


def interval(form: Form) -> Form | None:
    """The interval that an inequality describes, or None where it is none about one bare name."""
    text = form.source
    if found := _BETWEEN.fullmatch(text):
        low, first, second, high = found.groups()
        if _is_less(first) != _is_less(second):
            return None
        if not _is_less(first):
            low, first, second, high = high, second, first, low
    elif found := _ONE_SIDED.fullmatch(text):
        relation, bound = (found[1], found[2]) if found[1] else (found[4], found[3])
        if _is_less(relation) == (found[1] is not None):
            low, first, second, high = r"-\infty", "<", relation, bound
        else:
            low, first, second, high = bound, relation, "<", r"\infty"
    else:
        return None
    if any(re.search("[a-zA-Z]", _COMMAND.sub("", bound)) or re.search(_RELATION, bound) for bound in (low, high)):
        return None  # of other names, or a longer chain
    return form_of(f"{'(' if _is_strict(first) else '['}{low},{high}{')' if _is_strict(second) else ']'}")


def _is_less(relation: str) -> bool:
    return relation == "<" or relation.startswith(r"\l")


def _is_strict(relation: str) -> bool:
    return relation in ("<", ">", r"\lt", r"\gt")
