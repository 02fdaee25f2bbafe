"""Figures against brute force, scipy and published numbers; intervals against simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tinyzero_trl.intervals import compare, majority, mcnemar, mean, pass_at_k, share, wilson


@pytest.mark.parametrize(
    ("num_correct", "num_problems", "low", "high"),
    # shared/anchors.md C.7 and Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29.
    [
        (13, 30, 0.274, 0.608),
        (400, 500, 0.763, 0.833),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(num_correct, num_problems, low, high):
    estimate = wilson(num_correct, num_problems)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))
    assert estimate.n == num_problems


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy_and_holds_its_value(case):
    num_correct, num_problems = case
    estimate = wilson(num_correct, num_problems)
    expected = stats.binomtest(num_correct, num_problems).proportion_ci(method="wilson")
    assert estimate.low == pytest.approx(expected.low, abs=1e-12)
    assert estimate.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_a_share_of_nothing_or_of_less_than_itself_is_refused(successes, trials):
    with pytest.raises(ValueError, match="a share needs"):
        wilson(successes, trials)


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_one_sample_a_problem_gives_exactly_wilson(is_correct):
    assert share([float(x) for x in is_correct]) == wilson(sum(is_correct), len(is_correct))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_share_stays_inside_its_interval_and_the_unit_interval(values):
    estimate = share(values)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize(
    ("num_problems", "num_samples", "a", "b"),
    [(30, 4, 0.5, 0.5), (60, 8, 2, 5), (100, 8, 0.3, 2.0), (256, 4, 4, 1.5), (30, 16, 1, 1), (500, 2, 1, 3)],
)
def test_the_interval_over_problems_covers_the_truth_92_to_97_times_in_100(num_problems, num_samples, a, b):
    rng = np.random.default_rng(0)
    num_trials, truth = 3000, a / (a + b)
    chances = rng.beta(a, b, size=(num_trials, num_problems))
    means = rng.binomial(num_samples, chances) / num_samples
    estimates = [share(row) for row in means]
    coverage = np.mean([e.low <= truth <= e.high for e in estimates])
    assert 0.92 <= coverage <= 0.975


def test_the_spread_over_repeats_would_cover_far_too_rarely():
    """The interval that many harnesses print, std over repeats / sqrt(repeats), in the same simulation: the reason for ours."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.5, 0.5, size=(2000, 30))
    repeats = rng.binomial(1, chances[:, :, None], size=(2000, 30, 8)).mean(axis=1)
    half = 1.96 * repeats.std(axis=1, ddof=1) / np.sqrt(8)
    assert np.mean(np.abs(repeats.mean(axis=1) - 0.5) <= half) < 0.8


def test_a_mean_has_students_interval():
    values = [3.0, 4.0, 8.0, 9.0, 1.0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    estimate = mean(values)
    assert (estimate.value, estimate.n) == (5.0, 5)
    assert (estimate.low, estimate.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert mean([2.0]).low == mean([2.0]).high == 2.0


def test_pass_at_k_equals_the_count_over_all_subsets():
    for n in range(1, 9):
        for c in range(n + 1):
            samples = [1] * c + [0] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(samples, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 5, 2), (4, 1, 0), (0, 0, 1)])
def test_pass_at_k_with_fewer_samples_than_k_is_refused(n, c, k):
    with pytest.raises(ValueError, match=r"samples"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "is_correct", "expected"),
    [
        (["a", "a", "b"], [True, True, False], 1.0),
        (["a", "b", "b"], [True, False, False], 0.0),
        (["a", "b"], [True, False], 0.5),
        (["a", "b", "c"], [True, True, False], 2 / 3),
        ([None, None, "a"], [False, False, True], 1.0),
        ([None, None], [False, False], 0.0),
    ],
)
def test_the_majority_answer_wins_and_ties_are_drawn(answers, is_correct, expected):
    assert majority(answers, is_correct) == pytest.approx(expected)


def test_mcnemar_gives_the_hand_computed_p():
    # 9 against 1: 2 * (C(10,0) + C(10,1)) / 2^10; 5 against 0: 2 / 2^5.
    assert mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(0, 0) == 1.0


def test_a_comparison_of_single_samples_is_mcnemars():
    base = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    trained = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0]
    comparison = compare(base, trained)
    assert (comparison.num_better, comparison.num_worse) == (9, 1)
    assert comparison.gain.value == pytest.approx(8 / 12)
    assert comparison.p == pytest.approx(22 / 1024)
    # Agresti & Min (2005) by hand: n* = 14, difference 8/14, variance (10 + 1)/14 - (8/14)^2.
    half = 1.959964 * ((11 / 14 - (8 / 14) ** 2) / 14) ** 0.5
    assert comparison.gain.low == pytest.approx(8 / 14 - half, abs=1e-6)
    assert comparison.gain.high == pytest.approx(8 / 14 + half, abs=1e-6)


def test_a_paired_interval_is_narrower_than_the_unpaired_one_and_covers():
    rng = np.random.default_rng(1)
    num_trials, n, truth = 2000, 200, 0.1
    hits, widths = [], []
    ease = rng.uniform(0.05, 0.85, size=(num_trials, n))
    luck = rng.uniform(size=(num_trials, n))
    for row_ease, row_luck in zip(ease, luck, strict=True):
        base, trained = row_luck < row_ease, row_luck < row_ease + truth
        gain = compare(base, trained).gain
        hits.append(gain.low <= truth <= gain.high)
        p, q = base.mean(), trained.mean()
        widths.append((gain.high - gain.low) / (2 * 1.96 * np.sqrt((p * (1 - p) + q * (1 - q)) / n)))
    assert 0.92 <= np.mean(hits) <= 0.975
    assert np.mean(widths) < 0.6


def test_equal_evaluations_show_no_gain_and_still_have_a_width():
    comparison = compare([1, 0, 1], [1, 0, 1])
    assert (comparison.gain.value, comparison.p) == (0.0, 1.0)
    assert comparison.gain.low < 0 < comparison.gain.high


def test_different_numbers_of_problems_do_not_compare():
    with pytest.raises(ValueError, match="same problems"):
        compare([1, 0], [1])


@pytest.mark.parametrize(
    ("num_problems", "num_samples", "truth"), [(30, 16, 0.1), (30, 64, 0.05), (272, 4, 0.03), (500, 4, 0.0)]
)
def test_a_paired_interval_over_several_samples_covers_and_its_power_is_as_said(num_problems, num_samples, truth):
    """The problem is the unit: 30 problems with 16 samples are 30 facts, each known better."""
    rng = np.random.default_rng(2)
    ease = rng.beta(0.7, 1.5, size=(2000, num_problems)) * (1 - 2 * truth)
    # Some problems gain more than others, some nothing: `truth` is the mean.
    lift = 2 * truth * rng.integers(0, 2, size=ease.shape)
    base = rng.binomial(num_samples, ease) / num_samples
    trained = rng.binomial(num_samples, ease + lift) / num_samples
    found = [compare(*pair) for pair in zip(base, trained, strict=True)]
    assert {one.test for one in found} == {"paired t"}
    assert 0.92 <= np.mean([one.gain.low <= truth <= one.gain.high for one in found]) <= 0.975


def test_a_gain_of_the_size_said_to_be_resolvable_shows_four_times_in_five():
    rng = np.random.default_rng(3)
    ease = rng.beta(0.7, 1.5, size=(2000, 100)) * 0.8

    def found(lift):
        samples = [rng.binomial(8, chances) / 8 for chances in (ease, ease + lift)]
        return [compare(*pair) for pair in zip(*samples, strict=True)]

    gain = float(np.mean([one.resolvable for one in found(0.05)]))
    assert 0.75 < np.mean([one.p < 0.05 for one in found(gain)]) < 0.85
    assert 0.03 < np.mean([one.p < 0.05 for one in found(0.0)]) < 0.07


def test_a_gain_of_one_problem_in_thirty_is_too_small_and_one_over_five_hundred_is_not():
    thirty = compare([0] * 15 + [1] * 15, [0] * 13 + [1] * 17)
    assert thirty.is_too_small
    assert thirty.resolvable == pytest.approx(0.15, abs=0.03)
    assert thirty.num_problems_needed == pytest.approx(30 * (thirty.resolvable / (2 / 30)) ** 2, abs=1)
    many = compare([0] * 400 + [1] * 100, [0] * 300 + [1] * 200)
    assert not many.is_too_small
    assert many.resolvable < 0.06
