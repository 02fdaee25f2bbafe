"""Figures with a 95 % interval. The unit is the problem: k samples of one problem are not k independent observations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Coverage of every interval in this module."""
POWER = 0.8
"""Chance that a comparison shows a gain of the size `Comparison.resolvable`."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    """The measured figure."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Number of problems behind the figure; several samples of one problem count once."""

    def as_dict(self) -> dict[str, float | int]:
        """The record that summary.json holds."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same problems."""

    gain: Estimate
    """Mean over problems of (trained - base), between -1 and 1."""
    p: float
    """Two-sided p-value of `test`."""
    test: str
    """Name of the test: McNemar's exact test for one sample a problem, Student's paired t over problems for several."""
    num_better: int
    """Number of problems on which the second evaluation is better."""
    num_worse: int
    """Number of problems on which the second evaluation is worse."""
    resolvable: float
    """The smallest true gain that so many problems and samples would show at the 5 % level with 80 % power."""

    @property
    def is_too_small(self) -> bool:
        """True if so few problems cannot tell the measured difference from none."""
        return abs(self.gain.value) < self.resolvable and self.p >= 1 - CONFIDENCE

    @property
    def num_problems_needed(self) -> int | None:
        """Number of problems that would show a true gain of the measured size; None if no gain was measured."""
        if self.gain.value == 0:
            return None
        return math.ceil(self.gain.n * (self.resolvable / self.gain.value) ** 2)


def wilson(num_successes: float, num_trials: float) -> Estimate:
    """Wilson's score interval of a share: it lies inside [0, 1] and has a width even at 0 and at 1.

    num_trials: a count, or an effective number, which need not be whole.
    Source: Wilson (1927), Probable inference, JASA 22; without continuity correction, as scipy's `proportion_ci`.
    """
    if num_trials <= 0 or not 0 <= num_successes <= num_trials:
        raise ValueError(f"a share needs 0 <= successes <= trials and trials > 0, got {num_successes} of {num_trials}")
    return _score_interval(num_successes / num_trials, num_trials, float(stats.norm.ppf(0.5 + CONFIDENCE / 2)))


def share(values: Sequence[float]) -> Estimate:
    """Mean of one number in [0, 1] per problem, with Wilson's interval at the effective number of problems.

    Zeros and ones (one sample a problem) give exactly Wilson's interval. A mean of k samples varies less than a single 0 or 1:
    it counts as p(1-p)/variance trials. The variance is estimated, so Student's t replaces the normal quantile.
    Source: Korn & Graubard (1998), Survey Methodology 24, with Wilson's interval in place of Clopper-Pearson's.
    """
    values_N = np.asarray(values, dtype=float)
    n = len(values_N)
    if n == 0:
        raise ValueError("a share over no problems is not a number")
    if values_N.min() < 0 or values_N.max() > 1:
        raise ValueError(f"a share needs numbers in [0, 1], got {values_N.min()} to {values_N.max()}")
    mean = min(1.0, max(0.0, float(values_N.mean())))
    if np.isin(values_N, (0.0, 1.0)).all():
        estimate = wilson(float(values_N.sum()), n)
    else:
        variance = float(values_N.var(ddof=1)) if n > 1 else 0.0
        num_effective = mean * (1 - mean) * n / variance if variance > 0 else float(n)
        # Few problems with nearly equal means would otherwise claim any precision.
        num_effective = min(num_effective, 100.0 * n)
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, max(n - 1, 1)))
        estimate = _score_interval(mean, num_effective, quantile)
    return Estimate(mean, estimate.low, estimate.high, n)


def mean(values: Sequence[float]) -> Estimate:
    """Mean of one number per problem, of any size, with Student's t interval; a single problem gives an interval of zero width."""
    values_N = np.asarray(values, dtype=float)
    n = len(values_N)
    if n == 0:
        raise ValueError("a mean over no problems is not a number")
    centre = float(values_N.mean())
    if n == 1:
        return Estimate(centre, centre, centre, 1)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * float(values_N.std(ddof=1)) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k samples, drawn without replacement, include a correct one: the unbiased estimator of pass@k.

    Raises: ValueError if there are fewer than k samples, for which the estimator does not exist.
    Source: Chen et al. (arXiv 2107.03374), eq. 1.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples a problem and k >= 1, got {num_samples} samples")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} of {num_samples} samples can't be correct")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority(answers: Sequence[str | None], is_correct: Sequence[bool]) -> float:
    """Chance that the most frequent answer is correct, ties drawn at random.

    A sample without an answer (None) has no vote; a problem without votes counts as not solved.
    >>> majority(["7", "7", None, "9"], [True, True, False, False]), majority(["7", "9"], [True, False])
    (1.0, 0.5)
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    correct = {answer for answer, right in zip(answers, is_correct, strict=True) if right}
    return len(winners & correct) / len(winners)


def compare(base: Sequence[float], trained: Sequence[float]) -> Comparison:
    """Paired comparison: one number in [0, 1] per problem from each side, in the same order of problems.

    One sample a problem on both sides: the interval is Agresti and Min's, with half an observation added to each cell of the 2x2
    table. It keeps its coverage if few problems differ, and has a width if none does. p is McNemar's.
    Means of several samples: Student's t over the differences of the problems. If all problems differ by the same amount, the
    first method is used, because equal means on few problems prove no equality.
    Source: Agresti & Min (2005), Statistics in Medicine 24, 729; McNemar (1947), exact form; Miller (arXiv 2411.00640), sec. 2.2
    and 4.2 (paired differences, clustered), sec. 5 (power).
    """
    if len(base) != len(trained) or len(base) == 0:
        raise ValueError(f"a paired test needs the same problems on both sides, got {len(base)} and {len(trained)}")
    base_N, trained_N = np.asarray(base, dtype=float), np.asarray(trained, dtype=float)
    differences_N = trained_N - base_N
    n, gain = len(differences_N), float(differences_N.mean())
    num_better, num_worse = int((differences_N > 1e-12).sum()), int((differences_N < -1e-12).sum())
    is_single = np.isin(np.concatenate([base_N, trained_N]), (0.0, 1.0)).all()
    if is_single or np.ptp(differences_N) < 1e-12:
        centre = float(differences_N.sum()) / (n + 2)
        variance = (float((differences_N**2).sum()) + 1) / (n + 2) - centre**2
        error, quantile = math.sqrt(variance / (n + 2)), float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
        p, test = mcnemar(num_better, num_worse), "McNemar's exact"
    else:
        centre = gain
        error = float(differences_N.std(ddof=1)) / math.sqrt(n)
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
        p, test = 2 * float(stats.t.sf(abs(gain) / error, n - 1)), "paired t"
    half = quantile * error
    return Comparison(
        gain=Estimate(gain, max(-1.0, min(gain, centre - half)), min(1.0, max(gain, centre + half)), n),
        p=p,
        test=test,
        num_better=num_better,
        num_worse=num_worse,
        resolvable=(quantile + float(stats.norm.ppf(POWER))) * error,
    )


def mcnemar(num_better: int, num_worse: int) -> float:
    """Exact two-sided p-value of McNemar's test: the chance of a split at least as uneven if both sides were equally good."""
    if num_better + num_worse == 0:
        return 1.0
    return float(stats.binomtest(num_better, num_better + num_worse, 0.5).pvalue)


def _score_interval(centre: float, num_trials: float, quantile: float) -> Estimate:
    """Wilson's interval around the share `centre`, for the given quantile."""
    middle = (centre + quantile**2 / (2 * num_trials)) / (1 + quantile**2 / num_trials)
    half = (quantile / (1 + quantile**2 / num_trials)) * math.sqrt(
        centre * (1 - centre) / num_trials + quantile**2 / (4 * num_trials**2)
    )
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    # Rounding must not put the value outside its own interval.
    return Estimate(centre, min(low, centre), max(high, centre), round(num_trials))
