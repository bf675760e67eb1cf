"""Statistics over data sets: a Wilcoxon signed-rank test of two strategies, and critical differences of many.

**Source**: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, sections 3.1.3 and 3.2.
A data set is a client, since each has test data of its own, and its score is the mean over seeds. The tests ask whether
a strategy is better on *other data sets of this kind*, the paired t-test over seeds whether it is on these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.05  # of the critical difference
FEWEST = 3  # strategies and data sets of a critical difference


@dataclass(frozen=True)
class SignedRank:
    """Two strategies over ``n`` data sets: on how many the first one is better, and the two-sided p-value."""

    n: int
    wins: int
    p: float


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
    p is NaN with fewer than two data sets, and 1 where all scores are equal. With n of them it is at least 2 / 2^n.
    """
    apart = direction * (np.asarray(scores, dtype=float) - np.asarray(baseline, dtype=float))
    apart = apart[~np.isnan(apart)]
    wins = int((apart > 0).sum())
    if len(apart) < 2:
        return SignedRank(len(apart), wins, math.nan)
    moved = apart[apart != 0]
    if not len(moved):
        return SignedRank(len(apart), wins, 1.0)
    from scipy import stats

    return SignedRank(len(apart), wins, float(stats.wilcoxon(moved).pvalue))


def critical_difference(scores: ArrayLike) -> CriticalDifference | None:
    """Return mean ranks and their critical difference of scores (strategies, data sets), more is better.

    Data sets on which a strategy was not measured are left out; None with fewer than three strategies or data sets.
    """
    table = np.asarray(scores, dtype=float)
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
    names = dict.fromkeys(name for name, _ in places)
    return {name: float(np.mean([scores[place] for place in places if place[0] == name])) for name in names}
