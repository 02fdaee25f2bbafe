"""Training problems that are evaluation problems: word for word, or nearly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NGRAM_WORDS = 13
"""Source: GPT-3 (arXiv 2005.14165), appendix C; Qwen2.5-Math (arXiv 2409.12122), section 3.1."""
MIN_SHARE = 0.6
"""Of the evaluation problem's words that stand in the training problem in the same order, from which on an n-gram counts.

Source: Qwen2.5-Math, as above; without it, standing phrases of exams ("Express your answer as a common fraction ...") count.
"""
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
"""Pictures of MATH and AIME are programs, and all begin alike."""
_LOOKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\[!,;:()\[\]]|(?<=\\)[dt](?=frac)")
"""LaTeX in lower case that says how large or far apart something stands and where a formula ends: not what is asked."""
_WORD = re.compile(r"[a-z]+|[0-9]+")
_MARK = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9$]")


@dataclass(frozen=True)
class Overlap:
    """A training problem that is found in an evaluation."""

    index: int
    """Of the training problem."""
    evaluation: str
    problem: int
    """Of the evaluation problem."""


def overlaps(training: Sequence[str], evaluations: Mapping[str, Sequence[str]]) -> list[Overlap]:
    """The training problems that share 13 words in a row with an evaluation problem and 60 % of all words in order.

    Words are runs of letters or of digits, in lower case, drawings left out. A problem of fewer than 13 words must be the
    same in every word and mark. Each training problem is named once. What is put in other words, or into another language,
    is not found.
    """
    texts = {(name, at): words_of(text) for name, problems in evaluations.items() for at, text in enumerate(problems)}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for place, words in texts.items():
        for ngram in _ngrams(evaluations[place[0]][place[1]], words):
            places.setdefault(ngram, []).append(place)
    found = []
    for index, text in enumerate(training):
        words = words_of(text)
        tried: set[tuple[str, int]] = set()
        for place in (place for ngram in _ngrams(text, words) for place in places.get(ngram, ())):
            if place not in tried:
                tried.add(place)
                if _num_in_order(words, texts[place]) >= MIN_SHARE * len(texts[place]):
                    found.append(Overlap(index, *place))
                    break
    return found


def words_of(text: str) -> list[str]:
    r"""The words of a problem, whatever its LaTeX looks like.

    >>> words_of(r"Find $\frac{1}{23}$."), words_of(r"Find \(\left.\dfrac{1}{23}\right.\).")
    (['find', 'frac', '1', '23'], ['find', 'frac', '1', '23'])
    """
    return _WORD.findall(_plain(_DRAWING.sub(" ", text)))


def _plain(text: str) -> str:
    return _LOOKS.sub("", text.lower())


def _ngrams(text: str, words: list[str]) -> set[tuple[str, ...]]:
    """All runs of 13 words, or the whole of a shorter text with its marks."""
    if len(words) < NGRAM_WORDS:
        whole = tuple(_MARK.findall(_plain(text)))
        return {("", *whole)} if whole else set()
    return {tuple(words[at : at + NGRAM_WORDS]) for at in range(len(words) - NGRAM_WORDS + 1)}


def _num_in_order(one: list[str], other: list[str]) -> int:
    """Words of the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for at, same in enumerate(other, start=1):
            above = lengths[at]
            lengths[at] = diagonal + 1 if word == same else max(above, lengths[at - 1])
            diagonal = above
    return lengths[-1]
