r"""Other readings of an answer or a gold, tried if the other side is of that kind; text only.

- A comma in an answer as a decimal point, if the gold has a decimal point: `1000,99` is `1000.99`, but `1,2` is not `6/5`. Not if the
  comma may separate thousands (`1,234`), and not in golds, where `1,2` is a list.
- A letter after a number and a blank as a unit, if the gold is a number: `30 s` is `30`, but `30s` is a product.
- Inequalities, set builders and unions as the set of numbers that they describe (`sets`).
- A choice with its text as its letter, if the gold is that letter: `(E) 5` is `E`.
- A function under another name: `h(t) = 5t` and `y = 5x` are `g(x) = 5x`.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tinyzero_trl.tasks.math.normal_form import Form, form_of

_DECIMAL_COMMA = re.compile(r"[-+]?(?:[0-9]+,(?:[0-9]{1,2}|[0-9]{4,})|(?:0|[0-9]{4,}),[0-9]{3})")
_LETTER_UNIT = re.compile(r"([-+]?[0-9][0-9.,]*)\s+([mgsh])")
_CHOSEN = re.compile(r"\(?([A-J])(?:\)|[.:])\s*\S.*", re.DOTALL)
_FUNCTION = re.compile(r"[a-zA-Z]\w*'*\(\s*(\\?[a-zA-Z]+)\s*\)|[a-zA-Z]_([a-z])")
"""Names of functions: `f(x)` and `a_n`."""
_LETTER = re.compile(r"\\?[a-zA-Z]+")


def alike(gold: Form, form: Form, *, written: str) -> tuple[Form, Form]:
    """Gold and answer, or another reading of one or both. written: the answer as the response has it."""
    from tinyzero_trl.tasks.math.sets import as_sets  # here, because its import compiles patterns

    if (sets := as_sets(gold.cleaned, form.cleaned)) is not None:
        return form_of(sets[0]), form_of(sets[1])
    if form.parts and not gold.parts and gold.value is not None:
        if "." in gold.source and _DECIMAL_COMMA.fullmatch(written):
            return gold, form_of(written.replace(",", "."))
        return gold, form
    if gold.value is not None and (found := _LETTER_UNIT.fullmatch(written)):
        return gold, form_of(rf"{found[1]}\text{{ {found[2]}}}")
    if gold.is_word and (found := _CHOSEN.fullmatch(form.cleaned)) and gold.text == found[1]:
        return gold, form_of(found[1])
    return _as_functions(gold, form)


def _as_functions(gold: Form, form: Form) -> tuple[Form, Form]:
    """Gold and answer with the same name, if both define a function: `g(x)`, `h(t)` or `y`."""
    one, other = _FUNCTION.fullmatch(gold.name), _FUNCTION.fullmatch(form.name)
    if one is not None and other is not None:
        mine, theirs = one[1] or one[2], other[1] or other[2]
        source = _exchanged(form.source, mine, theirs)
        return gold, replace(form, name=gold.name, source=source, text=source if mine != theirs else form.text)
    if (argument := one or other) is None:
        return gold, form
    plain = gold if one is None else form
    if len(plain.name) != 1 or plain.name in (argument[1], argument[2]) or plain.name in _letters(plain.source):
        return gold, form
    name = gold.name if one is not None else form.name
    return replace(gold, name=name), replace(form, name=name)


def _letters(source: str) -> set[str]:
    return {letter for name in _LETTER.findall(source) for letter in ([name] if name[0] == "\\" else name)}


def _exchanged(source: str, one: str, other: str) -> str:
    """`source` with the names `one` and `other` exchanged.

    >>> _exchanged("5t + x", "x", "t")
    '5x + t'
    """
    names = {one: other, other: one}
    if one == other:
        return source

    def spelled(match: re.Match[str]) -> str:
        name = match[0]
        if name[0] == "\\":
            found = names.get(name, name)
            return found if found[0] == "\\" else f"{found} "
        return "".join(
            f"{names[letter]} " if names.get(letter, letter)[0] == "\\" else names.get(letter, letter)
            for letter in name
        )

    return _LETTER.sub(spelled, source)
