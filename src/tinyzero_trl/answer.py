"""The parts of a response: one answer rule for training and evaluation, in linear time, for any text.

The rule, for a response (= prefill + completion):

1. `</think>` occurs exactly once; `<think>` at most once, and before it.
2. After `</think>`, exactly one `<answer>` and one `</answer>` occur, in this order. The text between them is the
   answer; it may span lines, and blanks around it do not count.
3. The inside of the thought is ignored: an answer there is no answer, and does not make the answer after `</think>`
   a second one.
4. Blanks and end-of-text tokens after the block do not count. Other text before `<think>`, between the two blocks
   or after the answer leaves the answer as it is, but makes the response inexact. A blank thought or answer does so, too.
5. A response longer than `MAX_RESPONSE` is not read; it has no answer.

Tags are these very characters: no attributes, no blanks inside, no other case. Blank means ASCII blank.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BLANKS = " \t\r\n"
"""Characters around tags and answers that do not count."""

END_OF_TEXT = (
    "<|endoftext|>",
    "<|im_end|>",
    "</s>",
    "<eos>",
    "<pad>",
    "[PAD]",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
)
"""Spellings of end-of-text and padding tokens, which some decoders leave in the text."""

MAX_RESPONSE = 2**21
"""Length in characters, about half a million tokens; no text takes more than 10 ms."""

MAX_BLANKS = 65_536
"""Length in characters of a stretch of blanks and end-of-text tokens; a longer one counts as other text."""

_BLANKS = re.compile("[ \t\r\n]*+")
_ENDING = re.compile("(?:[ \t\r\n]++|" + "|".join(map(re.escape, END_OF_TEXT)) + ")*+")


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a response."""

    think: str | None
    """The text between the one `<think>` and the one `</think>`; None if either is missing or repeated."""
    answer: str | None
    """The inside of the one complete `<answer>` block after the one `</think>`, stripped of blanks; otherwise None."""
    is_exact: bool
    """True if the response is `<think>`, a thought, `</think>`, `<answer>`, an answer and `</answer>`, with nothing but blanks between."""
    has_answer_tag: bool
    """True if `<answer>` or `</answer>` occurs anywhere in the response."""


def split_response(response: str) -> Parts:
    """The parts of `response` by the rule above; no text makes it raise.

    >>> split_response("<think>1 + 2 = 3, yes</think> <answer> 1 + 2 </answer></s>")
    Parts(think='1 + 2 = 3, yes', answer='1 + 2', is_exact=True, has_answer_tag=True)
    """
    if len(response) > MAX_RESPONSE:
        return Parts(None, None, is_exact=False, has_answer_tag=False)
    closing = response.find("</think>")
    opening = response.find("<think>")
    after = closing + len("</think>")
    is_thought = (
        closing >= 0
        and opening < closing
        and response.find("</think>", after) < 0
        and response.find("<think>", opening + 1) < 0
    )
    if not is_thought:
        return Parts(None, None, is_exact=False, has_answer_tag=_has_answer_tag(response))
    think = response[opening + len("<think>") : closing] if opening >= 0 else None

    start = response.find("<answer>", after)
    end = response.find("</answer>", after)
    inside = start + len("<answer>")
    is_one_block = (
        0 <= start < end and response.find("<answer>", inside) < 0 and response.find("</answer>", end + 1) < 0
    )
    if not is_one_block:
        has_answer_tag = start >= 0 or end >= 0 or _has_answer_tag(response)
        return Parts(think, None, is_exact=False, has_answer_tag=has_answer_tag)
    answer = response[inside:end]
    if len(answer) <= MAX_BLANKS:
        answer = answer.strip(BLANKS)

    is_exact = (
        think is not None
        and answer != ""
        and _BLANKS.fullmatch(think) is None
        and _is_only(_BLANKS, response, 0, opening)
        and _is_only(_BLANKS, response, after, start)
        and _is_only(_ENDING, response, end + len("</answer>"), len(response))
    )
    return Parts(think, answer, is_exact=is_exact, has_answer_tag=True)


def _is_only(pattern: re.Pattern[str], text: str, start: int, end: int) -> bool:
    return end - start <= MAX_BLANKS and pattern.fullmatch(text, start, end) is not None


def _has_answer_tag(response: str) -> bool:
    return "<answer>" in response or "</answer>" in response
