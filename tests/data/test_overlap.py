"""Evaluation problems among training ones: found through other spelling, not for standing phrases."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tinyzero_trl.data.overlap import Overlap, overlaps, words_of

MATH = Path(__file__).parents[3] / "shared" / "data" / "math"
LONG = "A train leaves the station at noon and travels at 60 miles per hour for three hours before it stops. How far does it go?"
OTHER = "Ten points lie on a circle and every two of them are joined. Into how many parts is the disc cut at most? Express your answer as an integer."


def test_the_same_words_in_other_spelling_are_found():
    spelled = LONG.replace("60", "$60$").replace(" miles", "  MILES")
    assert overlaps([OTHER, spelled], {"e": ["nothing", LONG]}) == [Overlap(1, "e", 1)]


def test_the_same_problem_in_other_latex_is_found():
    ours = r"Find $\frac{x}{2}$ for the one x with $\left(x-1\right)\cdot\frac{1}{3} = 5$, in the interval from $0$ to $\frac{99}{2}$."
    theirs = r"Find \(\dfrac{x}{2}\) for the one x with \[(x-1)\cdot\tfrac{1}{3} = 5,\] in the interval from \(0\) to \(\displaystyle\frac{99}{2}\)."
    assert overlaps([ours], {"e": [theirs]}) == [Overlap(0, "e", 0)]
    assert overlaps([r"Find $\left.\frac12\right.$"], {"e": [r"find \(.\dfrac12.\)"]}) == [Overlap(0, "e", 0)]


def test_a_problem_with_words_around_it_is_found():
    assert overlaps(["Solve: " + LONG + " Think first."], {"e": [LONG]}) == [Overlap(0, "e", 0)]


def test_a_standing_phrase_is_no_overlap():
    phrase = " Express your answer as a common fraction in lowest terms with no spaces in it at all."
    one = "The sides of a triangle are in ratio two to three to four and its area is nine, so what is the longest of them?"
    assert not overlaps([one + phrase], {"e": [OTHER.rsplit(" Express", 1)[0] + " Nothing else counts here but the number itself," + phrase]})  # fmt: skip


def test_short_problems_must_be_the_same():
    assert overlaps(["Find $x^2$."], {"e": ["find x^2 ."]}) == [Overlap(0, "e", 0)]
    assert not overlaps(["Find $x^2$.", "Find $x^3$."], {"e": ["Find $x^4$."]})


def test_a_training_problem_is_named_once_and_blank_ones_never():
    assert overlaps([LONG, "", "$ $"], {"a": [LONG, LONG], "b": [LONG, ""]}) == [Overlap(0, "a", 0)]


def every_sixth_word_replaced(text: str) -> str:
    return " ".join("other" if at % 6 == 5 else word for at, word in enumerate(text.split()))


def other_latex(text: str) -> str:
    return (
        text.replace("$", " ")
        .replace(r"\frac", r"\dfrac")
        .upper()
        .replace("[ASY]", "[asy]")
        .replace("[/ASY]", "[/asy]")
    )


@pytest.mark.skipif(not MATH.is_dir(), reason="data sets of shared/data are not here")
def test_of_real_problems_copies_are_found_and_strangers_are_not():
    rng = random.Random(0)
    training = [json.loads(line)["problem"] for line in (MATH / "math_train_7k.jsonl").open(encoding="utf-8")]
    planted = rng.sample([text for text in training if 20 <= len(words_of(text)) <= 80], 200)
    strangers = [json.loads(line)["question"] for line in (MATH / "gsm8k_train.jsonl").open(encoding="utf-8")]

    def num_found(evaluation: list[str]) -> int:
        # A training problem is named once, and an evaluation problem much like another may be the one not named.
        return sum(bool(overlaps([text], {"e": [asked]})) for text, asked in zip(planted, evaluation, strict=True))

    assert num_found(planted) == 200
    assert num_found([other_latex(text) for text in planted]) == 200
    assert num_found([every_sixth_word_replaced(text) for text in planted]) == 11
    assert not overlaps(training, {"e": rng.sample(strangers, 1000)})
