r"""Finds the final answer of a response, as it was written. Training and evaluation use this rule; pure, total, linear time.

Only the text after the last `</think>` is read; a response that opens a thought and never closes it has no answer. The first of these
rules that applies decides, and no later one is tried:

1. **Box**: the last valid outermost `\boxed{...}` or `\fbox{...}`. A box is not valid if it is never closed, is empty, or holds another box
   or nothing but a question mark or dots; if there is no valid one, the response is `bad_format`. Only the last of several boxes counts,
   right or wrong. But boxes are one list if there is only a comma, a semicolon, "and" or "or" between them, with names (`y =`, "for part (b)").
2. **Answer tag**: the content of the only `<answer>...</answer>`: all of it, or, if there are words around the answer, the last expression
   in it by rule 3. Two blocks, or half a block, are `bad_format`.
3. **Last expression**: searched in the line after the last `####`; else in the line after the last "answer is" or "answer:", and if that
   has none, in the whole text. It is the last run of numbers, signs and letters that a reader would take for one expression, or the last
   formula between dollar signs or `\(`, `\[`, whichever ends later. It is taken as a whole: "3x" is not 3, but `90 + 6 = 96` is 96.
   An expression is not an answer if it is negated ("not 7"), hedged ("maybe 7", "about 7"), conditional ("7 if n is even"), listed ("11 or
   12", "12 and 15") or part of a phrase ("7 squared", "log 7"); "minus 7" is -7. A letter from A to J is an answer after "answer is",
   "answer:", "choice is" or "option", or alone. A response that reached the token limit has no last expression.

A response longer than `answer.MAX_RESPONSE` is not read, and rule 3 reads only the last `MAX_TAIL` characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tinyzero_trl.answer import BLANKS, MAX_RESPONSE

MAX_ANSWER = 1000
"""Most characters of an answer; the longest of MATH has 159."""
MAX_BOXES = 32
"""Most boxes that are read, from the end of a response, so that a million of them cost no more time."""
MAX_BETWEEN = 64
"""Most characters between two boxes of one list."""
MAX_TAIL = 2000
"""Characters at the end of a response in which the last expression is searched."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
_BOX_START = re.compile(r"[ \t\r\n]{0,8}\{")
_BARE_BOX = re.compile(r"[ \t]{0,8}([-+]?[0-9A-Za-z.]{1,64})")
_END = re.compile(r"<\|[a-z_]+\|>|</s>")
"""End-of-text tokens, after which a model may have gone on."""
_FORMULA = re.compile(r"\$\$([^$]+)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_PROSE = re.compile(r"[^\\]*[a-z]{2,}\s+[a-z]+[^\\]*|[^\\\s].*\s", re.DOTALL)
"""Words between two prices, which are not a formula."""
_ANSWER = re.compile(r"answer\**(?: is|:)", re.IGNORECASE)
_BETWEEN = re.compile(
    r"(?:[\s$.]|\\q?quad|\\[,;: \\()\[\]]|\\text\s*\{|\}|(?:for )?[Pp]art \(?[0-9a-z]\)?:?)*(?:,|;|and|or)"
    r"(?:[\s$,]|and|or|\\q?quad|\\[,;: ()\[\]]|\\text\s*\{|\}|(?:for )?[Pp]art \(?[0-9a-z]\)?:?|[a-zA-Z](?:_\{?[0-9a-zA-Z]\}?)?\s?=)*"
)
"""Text that joins the boxes around it to one list."""
_NO_ANSWER = re.compile(r"(?:[\s?.!_~-]|\\[a-z]?dots|\\text|[{}…])*")
"""Content of a box without an answer."""
_TOKEN = re.compile(
    r"(?P<command>\\(?:text|mathrm|mbox|operatorname)\s*\{[^{}]{0,64}\}|\\[a-zA-Z]+|\\[{}%,!])"
    r"|(?P<number>\$?(?:[0-9]+(?:[,.:][0-9]+)*|\.[0-9]+)(?:e[-+]?[0-9]+)?)"
    r"|(?P<word>[^\W\d_]{2,}(?:['’][a-z]+)?)|(?P<letter>[^\W\d_])|(?P<blank>[ \t\u00a0\u2009\u202f]+)|(?P<comma>,)|(?P<stop>[.;:?\n\r\"`&#@~])|(?P<sign>.)",
    re.DOTALL,
)
"""The tokens of a text in which expressions are found; each character belongs to one."""
_TIMES = re.compile(r"(?<=[0-9]) [xX] (?=\$?[0-9])")
_EMPHASIS = re.compile(r"(?<![0-9a-zA-Z)])\*\*|\*\*(?![0-9a-zA-Z(])|\*\*(?=\$?[0-9.,]+\*\*)|(?<=[0-9])\*\*(?=\s|$)")
_SCALE = re.compile(r"[ \t]+(?:hundred|thousand|million|billion|trillion|dozen|percent)\b", re.IGNORECASE)
_UNIT = re.compile(r"[a-zA-Z]\s?[/^*]")
_CLAUSE = re.compile(r"[.;:!?](?=\s)|[,\n]|\b(?:but|so|then|hence|therefore|thus|because|since|which)\b", re.IGNORECASE)
_DOUBTED = re.compile(
    r"\b(?:maybe|perhaps|possibly|probably|un(?:sure|certain|likely)|doubt(?:s|ful)?|guess(?:ing)?|suppose"
    r"|(?:false|wrong|incorrect|impossible) (?:that|to))\b|(?:\bnot|n['’]t) (?:think|believe|say|claim|mean|true|right|correct|the case)\b",
    re.IGNORECASE,
)
"""Words that make all expressions of their clause no answer."""
_NOT_QUITE = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|no|either|about|around|approximately|approx\.?|roughly|almost|nearly|might|may|could|between|likely|hardly"
    r"|instead of|rather than|other than|except|if (?:it|we|he|she|they|there)(?: were| was|'s| is| had)?|were it)\b|n['’]t\b)"
    r"(?:\s+(?!(?:is|are|was|were|equals|has|have|makes?|gives?|gets?|=)\b)\S+){0,4}\s*\S{0,3}$|[≈~]\s*\S{0,2}$",
    re.IGNORECASE,
)
"""Words that make the next expression no answer: "is not 7", "about 7"; but "those who do not smoke are 7"."""
_BOUNDED = re.compile(
    r"\b(?:(?:less|more|fewer|greater|larger|smaller|higher|lower|bigger) than|at (?:least|most)|over|under|above|below|beyond|up to|close to|near|from|anything but|approx\.?|approximately)\s+\S{0,3}$",
    re.IGNORECASE,
)
_UNKNOWN = re.compile(
    r"(?:don|can|couldn)['’]t (?:know|tell|say)|\bnot (?:sure|certain)\b|\bno idea\b|\bunsure\b", re.IGNORECASE
)
_LISTED = re.compile(
    r"[0-9)}$%](?:[*\s]{0,3}|\s[a-zA-Z]{1,20}\s{0,2})[,.;]?\s{0,2}(?:and/or|and|or|nor|to|through|vs\.?|versus|&)\s+(?:[a-zA-Z]{1,12}\s+)?\S{0,3}$",
    re.IGNORECASE,
)
_REASON = re.compile(r"(?<=[0-9])\W{1,4}(?:because|since)\b", re.IGNORECASE)
_CHANGED = re.compile(
    r"(?:\b(?:log|ln|lg|sin|cos|tan|sqrt|roots?|half|third|quarter|fourth|fifth|twice|double|triple|thrice|choose|mod|modulo|times|over|plus|divided by|squared|base|power|factorial"
    r"|multiple|factor|divisor|remainder|percent|percentage|fraction)(?:\s+(?:of|is))?|[0-9]\s{0,2};|[0-9)}]\s{1,2}(?:minus|negative))\s{1,3}$",
    re.IGNORECASE,
)
"""Words that make the next number part of a phrase: "log 7"."""
_NEGATIVE = re.compile(r"\b(?:minus|negative)\s{1,3}$", re.IGNORECASE)
_CHANGES = re.compile(
    r"\s{0,2}(?:squared|cubed|factorial|choose|mod|modulo|times|divided by|multiplied|over|plus|minus|and (?:a|one|two|three)[- ](?:half|third|quarter|fourth|fifth|thirds|quarters)"
    r"|halves|thirds|fourths|fifths|sixths|eighths|tenths|hundredths|to the)\b",
    re.IGNORECASE,
)
"""Words that make the number before them part of a phrase: "7 squared"."""
_NEARLY = re.compile(r"\s*(?:[a-zA-Z]\s*)?[≈~]")
_TAKEN_BACK = re.compile(
    r"(?:\s*\S+){0,2}?\s*\b(?:or|nor|if|unless)\b|\W*but\s(?:\S+\s){0,3}(?:not|wrong|incorrect|false|impossible)\b"
    r"|(?:\s*\S+){0,3}?(?:\s*\(?\b(?:not|wrong|incorrect|false|impossible|too|fails?|failed|maybe|perhaps|possibly|probably|at (?:least|most))\b|n['’]t\b|\?)",
    re.IGNORECASE,
)
"""Words that make the expression before them no answer."""
_CHOICE = re.compile(
    r"(?:[\s*_:$({]|\\text|\\(?:\(|mathbf|textbf|mathrm))*(?:option |choice )?[\s*({]*([A-J])(?:[\s*_.:$)}!]|\\\))*",
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"(?<!not )\b(?:answer|choice|option)(?: is| would be|:)?[\s*:]*(?:(?:option|choice) )?[\s*$({\\text]{0,8}([A-J])(?:[\s*_.:$)}!]|\\\))*$"
)
_ARITHMETIC = re.compile(r"[-−–+*/^×·÷()\\{}\s0-9.,$%=]*[-−–+*/^×·÷\\][-−–+*/^×·÷()\\{}\s0-9.,$%=]*")
_COMMANDS = re.compile(r"\\(?:[dtc]?frac|cdot|times|div|left|right|sqrt|pi|[,;! ])(?![a-zA-Z])")
_NAMED = re.compile(r"\s*(?:\\?[a-zA-Z]+|\\(?:text|mathrm)\s*\{[^{}]*\})(?:_(?:\w|\{[^{}]*\}))?'*(?:\([^()]*\))?\s*")
_WORDS = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{2,}(?![a-zA-Z]*\})")
_PLAIN_WORDS = frozenset(("and", "or", "sin", "cos", "tan", "log", "ln", "sqrt", "pi", "infinity", "inf"))
"""Words that also occur in formulas."""
_QUANTITY = re.compile(r"[-−]?\$?[0-9][0-9.,/]*\s*[a-zA-Z%/°^0-9 .]{1,40}")
"""A number with a unit, which `units` reads."""


@dataclass(frozen=True, slots=True)
class Found:
    """The final answer of a response, or the lack of one."""

    answer: str | None
    """The answer as written, without blanks around it; None if there is none."""
    is_malformed: bool = False
    """True if there is a box or an answer tag that is not valid."""


def find_answer(response: str, *, is_truncated: bool = False) -> Found:
    r"""The final answer of `response` by the rules in the head of this file; never raises.

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
    return Found(_last_expression(_END.split(final, maxsplit=1)[0][-MAX_TAIL:]))


def _boxed(text: str) -> Found:
    lists: list[list[str]] = []
    end = 0
    for match in [*_BOX.finditer(text)][-MAX_BOXES:]:
        if match.start() < end:  # inside the box before it
            continue
        if not lists or match.start() - end > MAX_BETWEEN or not _BETWEEN.fullmatch(text, end, match.start()):
            lists.append([])
        opening = _BOX_START.match(text, match.end())
        if opening is None:
            bare = _BARE_BOX.match(text, match.end())
            inside, end = (bare[1], bare.end()) if bare else (None, match.end())
        else:
            inside, end = _inside(text, opening.end())
        lists[-1].append("" if inside is None or _NO_ANSWER.fullmatch(inside) else inside.strip(BLANKS))
    for answers in reversed(lists):
        answer = ", ".join(filter(None, answers))
        if answer and not _BOX.search(answer):
            return Found(answer)
    return Found(None, is_malformed=True)


def _inside(text: str, start: int) -> tuple[str | None, int]:
    """(the text from `start` to its closing brace, the index after that brace); (None, start) if the brace is too far away."""
    depth = 1
    limit = min(len(text), start + 2 * MAX_ANSWER)
    at = start
    while at < limit:
        character = text[at]
        if character == "\\":
            at += 1  # `\{` is not a brace
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
    block = text[inside:end].strip(BLANKS) if is_one else ""
    return Found(_stated(block)) if block else Found(None, is_malformed=True)


def _last_expression(text: str) -> str | None:
    text = _EMPHASIS.sub("", text)
    marker = text.rfind("####")
    if marker >= 0:
        return _stated(text[marker + 4 :].strip(BLANKS).split("\n")[0].strip(BLANKS + ":*"))
    said = [*_ANSWER.finditer(text)]
    behind = text[said[-1].end() :] if said else ""
    line = behind.strip(BLANKS).split("\n")[0]
    if (choice := _CHOICE.fullmatch(line)) and choice[1].isupper():
        return choice[1]
    if said:
        start = said[-1].start()
        # At the start of a line, a dash is a bullet and not a minus.
        is_below = "\n" in behind[: len(behind) - len(behind.lstrip(BLANKS))]
        around = _REASON.split(line if is_below else text[start : said[-1].end()] + behind.split("\n")[0])[0]
        if (found := _last_in(around, text[max(0, start - 80) : start])) != (None, False):
            return found[0]
    last = text.strip(BLANKS).rsplit("\n", 1)[-1][-200:]
    if (choice := (_CHOICE.fullmatch(last) or _CHOSEN.search(last))) and choice[1].isupper():
        return choice[1]
    return _last_in(text)[0]


def _stated(text: str) -> str | None:
    """The answer in a text that should hold nothing else: all of it if it is an expression, else the last expression in it."""
    text = text.strip(BLANKS)
    if len(text) > MAX_TAIL:
        return text
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    words = [word for word in _WORDS.findall(text) if word.lower() not in _PLAIN_WORDS]
    is_either = re.search(r"(?<![a-zA-Z\\])or(?![a-zA-Z])", text) is not None and not re.search(
        "[=<>≤≥]|\\\\[lg]e", text
    )
    if not any(character.isdigit() for character in text):
        if (not words and "=" not in text) or not _CHOSEN.search(text):
            return text or None
    elif not words and is_either:
        return None
    elif (not words and text.count("=") == 0) or (_QUANTITY.fullmatch(text) and "=" not in text):
        return text
    elif not words and (is_or := re.search(r"[,;]|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])", text)) is not None and is_or:
        return text  # several equations
    return _last_expression(text) if "####" not in text else _last_in(text)[0]


def _last_in(text: str, said: str = "") -> tuple[str | None, bool]:
    """(the last expression of `text` or None, True if there is one that the words around it exclude). said: the text before `text`."""
    text = _TIMES.sub(" * ", text)
    formulas = [match for match in _FORMULA.finditer(text) if match[2] is None or not _PROSE.fullmatch(match[2])]
    start = formulas[-1].end() if formulas else 0
    if (run := _last_run(text, start)) is not None:
        start, end = run
        found = text[start:end]
    elif formulas:
        start, end = formulas[-1].span()
        found = next(group for group in formulas[-1].groups() if group is not None)
    else:
        return None, False
    before = f"{said} {text[:start]}"
    if _NEARLY.match(found) or _is_doubted(before, text[end:]) or _is_part(before, text[end:]):
        return None, True
    answer = _last_side(found).strip(BLANKS)
    return f"-{answer}" if answer and answer[0].isdigit() and _NEGATIVE.search(before) else answer or None, False


def _last_run(text: str, at: int) -> tuple[int, int] | None:
    """Start and end of the last run of `text` after `at` with a number or a command; None if there is none."""
    best: tuple[int, int] | None = None
    start = end = -1
    depth = 0
    kind = ""
    is_expression = is_blank = False

    def close() -> None:
        nonlocal best, start, depth, is_expression
        if start >= 0 and is_expression:
            best = (start, end)
        start, depth, is_expression = -1, 0, False

    for token in _TOKEN.finditer(text, at):
        before, kind = kind, token.lastgroup or ""
        piece = token[0]
        if kind == "blank":
            is_blank, kind = True, before
            continue
        is_near, is_blank = not is_blank, False
        if kind == "stop" or (
            (kind == "word" and not (start >= 0 and is_near and before in ("number", "sign", "letter", "command")))
            or (
                kind == "word"
                and text[token.start() - 1 : token.start()] == "("
                and (text[token.end() : token.end() + 1] == " " or text[token.start() - 2 : token.start() - 1] == " ")
            )
        ):
            close()
            continue
        if kind == "comma":
            if depth == 0 and not re.match(r"\s*[-−+±]?[\\$(]?[0-9(\\]", text[token.end() : token.end() + 8]):
                close()
            elif start >= 0:
                end = token.end()
            continue
        if kind == "sign" and piece in "–—" and text[token.end() : token.end() + 1].isspace():
            close()
            continue
        if (
            kind == "letter"
            and not is_near
            and start >= 0
            and before in ("number", "command")
            and not _UNIT.match(text, token.start())
        ):
            close()
        if kind in ("number", "command") and before == "letter" and not is_near and start >= 0:
            close()
        if start < 0:
            start = token.start()
        end = token.end()
        depth += (piece[-1] in "([{") - (piece[-1] in ")]}") if kind == "sign" or piece in ("\\{", "\\}") else 0
        is_expression = (
            is_expression or kind == "number" or (kind == "command" and piece not in ("\\text", "\\quad", "\\qquad"))
        )
    close()
    if best is None:
        return None
    start, end = best
    return _trimmed(text, start, end)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Start and end of the run without the marks of prose at its ends: bullets, dashes, commas, unmatched brackets."""
    if scale := _SCALE.match(text, end):
        end = scale.end()
    while start < end and (
        text[start] in " \t*+/,^)]}_!%'’&" or (text[start] in "-" and text[start + 1 : start + 2] in " \t")
    ):
        if text[start] == "-" and text[:start].rstrip(" \t")[-1:] not in ("", "\n"):
            break
        start += 1
    while start < end and text[end - 1] in " \t*+/,^-=(_'’–—{[":
        end -= 1
    depth = lowest = 0
    for character in text[start:end]:
        depth += (character in "([{") - (character in ")]}")
        lowest = min(lowest, depth)
    while depth > 0 and start < end and text[start] in "([{":
        start, depth = start + 1, depth - 1
    while depth < 0 and start < end and text[end - 1] in ")]}":
        end, depth = end - 1, depth + 1
    return start, end


def _is_doubted(before: str, after: str) -> bool:
    """True if the expression between the two is negated, hedged or one of a list."""
    before, after = before[-120:], after[:60]
    sentence = re.split(r"[.!?\n](?=\s)|\n", before)[-1]
    clause = _CLAUSE.split(before)[-1]
    rest = re.split(
        r"[.;!\n](?:\s|$)|,(?! ?(?:or|not|but|maybe|perhaps|possibly))|\b(?:and|because|since|so|as)\b", after
    )[0]
    return bool(
        _DOUBTED.search(clause)
        or _NOT_QUITE.search(clause)
        or _BOUNDED.search(before)
        or _UNKNOWN.search(sentence)
        or _LISTED.search(before)
        or _TAKEN_BACK.match(rest)
    )


def _is_part(before: str, after: str) -> bool:
    """True if the expression between the two is an operand of words, or the end of a name: "5 squared", "log 3", "CO2"."""
    is_glued = before[-1:].isalnum() or before[-1:] == "_"
    return is_glued or _CHANGED.search(before[-40:]) is not None or _CHANGES.match(after) is not None


def _last_side(expression: str) -> str:
    """The text after the last `=` of a calculation or after a name; another equation stays whole.

    >>> _last_side("90 + 6 = 96"), _last_side("x = 7"), _last_side("2x = 10"), _last_side("12 = 13")
    (' 96', ' 7', '2x = 10', '12 = 13')
    """
    left, sign, right = expression.rpartition("=")
    if not sign or re.search("[<>≤≥]|\\\\[lg]e", expression) or "\\begin" in expression:
        return expression
    sides = left.split("=")
    is_name = _NAMED.fullmatch(sides[0]) is not None
    rest = sides[1:] if is_name or not sides[0].strip() else sides
    if is_name and not rest and not _ARITHMETIC.fullmatch(_COMMANDS.sub("/", f"-{right}")):
        return expression  # `y = 2x` is not `x = 2y`
    if all(_ARITHMETIC.fullmatch(_COMMANDS.sub("/", side)) for side in rest):
        return right
    return expression
