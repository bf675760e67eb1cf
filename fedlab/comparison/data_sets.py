"""Statistics over data sets: a Wilcoxon signed-rank test of two strategies, and critical differences of many.

**Source**: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, sections 3.1.3 and 3.2.
A data set is a client, since each has test data of its own, and its score is the mean over seeds. The tests ask whether
a strategy is better on *other data sets of this kind*, the paired t-test over seeds whether it is on these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlab.comparison.statistics import rounded

LEVEL = 0.05  # of the critical difference
FEWEST = 3  # strategies and data sets of a critical difference
EXACT, APPROXIMATE = "exact", "asymptotic"  # distributions of the signed-rank statistic, as scipy names them
MOST_EXACT, MOST_SIGNS = 50, 13  # pairs up to which a distribution is exact: counted, or of 2^n signs where ranks tie


@dataclass(frozen=True)
class SignedRank:
    """Two strategies over ``n`` data sets: on how many the first one is better, and the two-sided p-value.

    ``method`` is the distribution that p is of, ``exact`` or ``asymptotic`` (normal); "" where nothing was tested.
    """

    n: int
    wins: int
    p: float
    method: str = ""


@dataclass(frozen=True)
class CriticalDifference:
    """Mean ranks over data sets, and by how much two of them must differ.

    Attributes
    ----------
    ranks
        Mean rank of each strategy, 1 is best.
    n
        Number of data sets.
    p
        p-value of Friedman's test that all strategies are alike.
    width
        The critical difference of Nemenyi's test at the level 0.05.
    """

    ranks: tuple[float, ...]
    n: int
    p: float
    width: float

    def groups(self) -> list[tuple[int, ...]]:
        """Return the largest sets of strategies, by index and best first, whose ranks the data does not tell apart."""
        order = sorted(range(len(self.ranks)), key=lambda index: self.ranks[index])
        found: list[tuple[int, ...]] = []
        for start, first in enumerate(order):
            group = tuple(i for i in order[start:] if self.ranks[i] - self.ranks[first] < self.width)
            if len(group) > 1 and not (found and set(group) <= set(found[-1])):
                found.append(group)
        return found


def signed_rank(scores: ArrayLike, baseline: ArrayLike, direction: int = 1) -> SignedRank:
    """Compare two strategies on the same data sets.

    Parameters
    ----------
    scores, baseline
        A score a data set (n,) of each strategy, in one order; pairs with a NaN are left out.
    direction
        1 where more is better, -1 where less is.

    Returns
    -------
    p is NaN with fewer than two data sets, and 1 where all scores are equal. With n of them it is at least 2 / 2^n. It
    is exact up to 50 pairs that differ, or 13 where some differ by the same amount, else a normal approximation.
    """
    one, other = np.asarray(scores, dtype=float), np.asarray(baseline, dtype=float)
    known = ~np.isnan(one - other)
    one, other = one[known], other[known]
    apart = rounded(direction * (one - other), np.maximum(np.abs(one), np.abs(other)))
    wins = int((apart > 0).sum())
    if len(apart) < 2:
        return SignedRank(len(apart), wins, math.nan)
    moved = apart[apart != 0]
    if not len(moved):
        return SignedRank(len(apart), wins, 1.0, EXACT)
    return SignedRank(len(apart), wins, *_signed_rank_p(moved))


def _signed_rank_p(moved: NDArray[np.float64]) -> tuple[float, str]:
    """Return the p-value of differences (n,), none of which is 0, and the name of its distribution."""
    from scipy import stats

    n, tied = len(moved), len(np.unique(np.abs(moved))) < len(moved)
    name = APPROXIMATE if n > (MOST_SIGNS if tied else MOST_EXACT) else EXACT
    # scipy's "exact" takes no ties into account; trying every sign does.
    method: Any = stats.PermutationMethod(n_resamples=2**MOST_SIGNS) if tied and name == EXACT else name
    return float(stats.wilcoxon(moved, method=method).pvalue), name


def critical_difference(scores: ArrayLike) -> CriticalDifference | None:
    """Return mean ranks and their critical difference of scores (strategies, data sets), more is better.

    Data sets on which a strategy was not measured are left out; None with fewer than three strategies or data sets.
    """
    table = rounded(scores)
    whole: NDArray[np.float64] = table[:, ~np.isnan(table).any(0)]
    strategies, n = whole.shape
    if strategies < FEWEST or n < FEWEST:
        return None
    from scipy import stats

    ranks = stats.rankdata(-whole, axis=0).mean(1)
    alike = bool((whole == whole[:1]).all())
    p = 1.0 if alike else float(stats.friedmanchisquare(*whole).pvalue)
    quantile = float(stats.studentized_range.ppf(1 - LEVEL, strategies, math.inf)) / math.sqrt(2)
    width = quantile * math.sqrt(strategies * (strategies + 1) / (6 * n))
    return CriticalDifference(tuple(map(float, ranks)), n, p, width)


def mean_by_data_set(scores: dict[tuple[str, int], float], places: Sequence[tuple[str, int]]) -> dict[str, float]:
    """Return the mean over seeds of each data set, from scores by (data set, seed), over the given places alone."""
    found: dict[str, list[float]] = {}
    for place in places:
        found.setdefault(place[0], []).append(scores[place])
    return {name: float(np.mean(of)) for name, of in found.items()}
