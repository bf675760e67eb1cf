"""Statistics of a comparison: intervals over seeds, paired differences, ranks, and the cost to reach a target.

**Source**: Student's t interval and paired t-test (scipy.stats); the effect size g of Hedges, Distribution Theory for
Glass's Estimator of Effect Size, 1981, of paired differences as in Lakens, Frontiers in Psychology 2013; Holm, A Simple
Sequentially Rejective Multiple Test Procedure, 1979; mean ranks as in Demsar, Statistical Comparisons of Classifiers
over Multiple Data Sets, JMLR 2006.

A seed fixes the initial model, every batch and, where a workload draws it, the split of the data. Runs of two
strategies with one seed share all of that, so they are compared seed by seed. What was not measured is NaN here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95  # of every interval
ROUNDING = 8 * float(np.finfo(float).eps)
DIGITS, MAX_EXPONENT = 12, 300  # significant digits to which numbers are compared; of the scale that takes


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values with its interval; ``low`` and ``high`` are NaN where there is but one."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """A mean difference with its interval, the p-value of the two-sided paired t-test, and its effect size.

    ``effect`` is Hedges' g: the mean difference in standard deviations of the differences, corrected for small samples;
    NaN with fewer than three pairs, or where all differences are equal and not zero; 0 where all are zero.
    """

    difference: Interval
    p: float
    effect: float


def interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return mean and Student's t interval of a sample (n,), NaN left out.

    >>> interval([1.0, 2.0, 3.0]).mean
    2.0
    """
    sample = _known(values)
    n = len(sample)
    mean = float(sample.mean()) if n else math.nan
    if n < 2:
        return Interval(n, mean, math.nan, math.nan)
    from scipy import stats  # a second to import, for which only a comparison has to wait

    half = float(stats.t.ppf((1 + level) / 2, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return Interval(n, mean, mean - half, mean + half)


def paired(values: ArrayLike, baseline: ArrayLike, level: float = LEVEL) -> Paired:
    """Return the difference of two samples (n,) of the same seeds in the same order; pairs with a NaN are left out.

    Samples that are equal value by value, but for rounding, have p = 1.
    """
    one, other = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    differences = _known(rounded(one - other, np.maximum(np.abs(one), np.abs(other))))
    difference = interval(differences, level)
    if len(differences) < 2:
        return Paired(difference, math.nan, math.nan)
    if not differences.any():
        return Paired(difference, 1.0, 0.0)
    deviation, n = float(differences.std(ddof=1)), len(differences)
    if deviation <= ROUNDING * max(np.nanmax(np.abs(one)), np.nanmax(np.abs(other))):
        deviation = 0.0  # all differences are the same number but for its rounding
    t = math.inf if deviation == 0 else abs(difference.mean) / deviation * math.sqrt(n)
    from scipy import stats

    p = float(2 * stats.t.sf(t, n - 1))
    return Paired(difference, p, _correction(n - 1) * difference.mean / deviation if deviation else math.nan)


def _correction(freedom: int) -> float:
    """Return Hedges' factor, by which an effect size of a sample is too large; NaN for one degree of freedom."""
    if freedom < 2:
        return math.nan
    return math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number: the chance that any of all comparisons errs stays below the level.

    NaN is no comparison: it stays NaN and is not counted.
    """
    known = [index for index, p in enumerate(p_values) if not math.isnan(p)]
    order = sorted(known, key=lambda index: p_values[index])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for step, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - step) * p_values[index]))
        corrected[index] = largest
    return corrected


def rounded(numbers: ArrayLike, sizes: ArrayLike | None = None) -> NDArray[np.float64]:
    """Return numbers with ``DIGITS`` significant digits, so that means which differ by their rounding alone are equal.

    ``sizes`` are the numbers whose digits count, for differences the larger of both; None: the numbers themselves. NaN
    and infinity stay.

    >>> bool(np.diff(rounded([0.1 + 0.2, 0.3])) == 0)
    True
    """
    table = np.asarray(numbers, dtype=float)
    size = np.abs(table if sizes is None else np.asarray(sizes, dtype=float))
    size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
    scale = 10.0 ** np.minimum(DIGITS - np.ceil(np.log10(size)), MAX_EXPONENT)
    found: NDArray[np.float64] = np.round(table * scale) / scale
    return found


def ranks(scores: ArrayLike) -> NDArray[np.float64]:
    """Return mean ranks (variants,) of scores (variants, blocks), 1 is best, ties averaged; blocks are domain and seed.

    More is better. Blocks in which a variant was not measured are left out; with none left, every rank is NaN.
    """
    table = rounded(scores)
    whole = table[:, ~np.isnan(table).any(0)]
    if not whole.size:
        return np.full(len(table), math.nan)
    from scipy import stats

    found: NDArray[np.float64] = stats.rankdata(-whole, axis=0).mean(1)
    return found


def closed(difference: float, gap: Interval) -> float:
    """Return the fraction of the gap between two references that a difference to the lower one closes.

    Below 0 where it loses to the lower one, above 1 where it beats the upper one; NaN where the gap may be none, that
    is, unless its interval lies above 0.
    """
    return difference / gap.mean if gap.low > 0 else math.nan


def first_reach(scores: ArrayLike, target: float, direction: int = 1) -> int | None:
    """Return the index of the first score (rounds,) that is as good as the target; None when none is.

    ``direction`` is 1 where more is better, -1 where less is.
    """
    reached = np.flatnonzero(direction * rounded(scores) >= direction * rounded(target))
    return int(reached[0]) if len(reached) else None


def _known(values: ArrayLike) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=float)
    known: NDArray[np.float64] = sample[~np.isnan(sample)]
    return known
