"""Finding training problems that are also evaluation problems, word for word or nearly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NGRAM_WORDS = 13
"""Words in a row that two problems must share.

Source: GPT-3 (arXiv 2005.14165), appendix C; Qwen2.5-Math (arXiv 2409.12122), section 3.1.
"""
MIN_SHARE = 0.6
"""Least share of the evaluation problem's words that the training problem must have in the same order, besides a shared n-gram.

Source: Qwen2.5-Math, as above. Without this share, common phrases of exams ("Express your answer as a common fraction ...") would count.
"""
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
"""Pictures in MATH and AIME problems; they are programs that all begin alike."""
_LOOKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\[!,;:()\[\]]|(?<=\\)[dt](?=frac)")
"""LaTeX, in lower case, for sizes, spaces and formula delimiters, which do not change the problem."""
_WORD = re.compile(r"[a-z]+|[0-9]+")
_MARK = re.compile(r"[a-z]+|[0-9]+|[^\sa-z0-9$]")


@dataclass(frozen=True)
class Overlap:
    """A training problem that is found in an evaluation."""

    index: int
    """Index of the training problem."""
    evaluation: str
    """Name of the evaluation."""
    problem: int
    """Index of the problem in the evaluation."""


def overlaps(training: Sequence[str], evaluations: Mapping[str, Sequence[str]]) -> list[Overlap]:
    """The training problems that share 13 words in a row, and 60 % of all words in order, with an evaluation problem.

    Words are runs of letters or digits, in lower case, without drawings. A problem of fewer than 13 words must agree in every
    word and mark. Each training problem is listed once. Paraphrases and translations are not found.
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
    r"""The words of a problem, the same for different LaTeX of the same formula.

    >>> words_of(r"Find $\frac{1}{23}$."), words_of(r"Find \(\left.\dfrac{1}{23}\right.\).")
    (['find', 'frac', '1', '23'], ['find', 'frac', '1', '23'])
    """
    return _WORD.findall(_plain(_DRAWING.sub(" ", text)))


def _plain(text: str) -> str:
    return _LOOKS.sub("", text.lower())


def _ngrams(text: str, words: list[str]) -> set[tuple[str, ...]]:
    """All runs of 13 words; of a shorter text, all its words and marks as one."""
    if len(words) < NGRAM_WORDS:
        whole = tuple(_MARK.findall(_plain(text)))
        return {("", *whole)} if whole else set()
    return {tuple(words[at : at + NGRAM_WORDS]) for at in range(len(words) - NGRAM_WORDS + 1)}


def _num_in_order(one: list[str], other: list[str]) -> int:
    """Number of words in the longest common subsequence."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for at, same in enumerate(other, start=1):
            above = lengths[at]
            lengths[at] = diagonal + 1 if word == same else max(above, lengths[at - 1])
            diagonal = above
    return lengths[-1]
