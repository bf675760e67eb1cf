"""Tests over data sets: the worked example of Demsar, JMLR 2006, and cases by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedlab.comparison.data_sets import CriticalDifference, critical_difference, mean_by_data_set, signed_rank

# Table 2 of the paper: AUC of C4.5 and of C4.5 with a tuned parameter on 14 data sets.
PLAIN = [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.940, 0.619, 0.972, 0.957]
TUNED = [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978]
SCORES = np.random.default_rng(0).normal([[0.0], [0.4], [0.8], [1.0]], 1.0, (4, 14))


def test_the_critical_difference_has_the_quantile_of_the_paper():
    found = critical_difference(SCORES)
    assert (found.n, found.width) == (14, pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=5e-4))  # its table 5
    assert found.ranks == pytest.approx(stats.rankdata(-SCORES, axis=0).mean(1))
    assert found.p == pytest.approx(stats.friedmanchisquare(*SCORES).pvalue)


def test_the_example_of_the_paper_has_two_groups_at_its_level():
    """Section 3.2.2: with a critical difference of 1.12, C4.5 differs from the two best ones."""
    found = CriticalDifference((3.143, 2.000, 2.893, 1.964), 14, 0.02, 1.12).groups()
    assert found == [(3, 1, 2), (2, 0)]


def test_the_signed_rank_test_is_that_of_the_paper():
    found = signed_rank(TUNED, PLAIN)
    assert (found.n, found.wins) == (14, 10) and found.p < 0.05


def test_p_by_hand():
    assert signed_rank([1, 2, 3], [0, 0, 0]) == signed_rank([0, 0, 0], [1, 2, 3], direction=-1)
    assert signed_rank([1, 2, 3], [0, 0, 0]).p == pytest.approx(2 / 2**3)
    assert signed_rank([1, 2, math.nan], [1, 2, 3]).p == 1.0
    assert math.isnan(signed_rank([1.0], [0.0]).p) and signed_rank([1.0], [0.0]).wins == 1


def test_p_of_equal_differences_counts_every_sign():
    """Four differences of 0.1, each with a rounding of its own: 2 of 16 signs are as far from even."""
    found = signed_rank([0.9, 0.8, 0.7, 0.6], [0.8, 0.7, 0.6, 0.5])
    assert (found.p, found.method) == (pytest.approx(2 / 2**4), "exact")


def test_means_that_differ_by_their_rounding_are_equal():
    first, second = [0.1 + 0.2, 1e20, 0.5], [0.3, 1e20, 0.4]
    assert signed_rank(first, second).wins == 1 and signed_rank(second, first).wins == 0
    found = critical_difference([first, second, [0.1, 0.1, 0.1]])
    assert found is not None and found.ranks == pytest.approx((4 / 3, 5 / 3, 3))


def test_means_of_many_data_sets_take_one_look_at_each_score():
    class Counted(dict):
        looks = 0

        def __getitem__(self, place):
            self.looks += 1
            return super().__getitem__(place)

    scores = Counted({(f"c{at}", seed): at + seed for at in range(100) for seed in (0, 1)})
    assert mean_by_data_set(scores, list(scores)) == {f"c{at}": at + 0.5 for at in range(100)}
    assert scores.looks == 200


@pytest.mark.parametrize(("n", "ties", "method"), [(50, 1, "exact"), (51, 1, "asymptotic"), (14, 2, "asymptotic")])
def test_the_distribution_of_p_is_the_one_that_is_named(n, ties, method):
    apart = np.random.default_rng(n).normal(0.3, 1.0, n)
    apart[:ties] = 0.5
    found = signed_rank(apart, np.zeros(n))
    assert found.method == method
    assert found.p == pytest.approx(stats.wilcoxon(apart, method=method).pvalue)


def test_groups_are_as_large_as_they_can_be():
    assert CriticalDifference((1.0, 2.0, 3.0, 4.5), 9, 0.0, 1.5).groups() == [(0, 1), (1, 2)]
    assert CriticalDifference((3.0, 1.0, 2.0), 9, 0.0, 0.5).groups() == []


def test_too_few_or_all_alike():
    assert critical_difference(SCORES[:2]) is None and critical_difference(SCORES[:, :2]) is None
    assert critical_difference(np.full((3, 4), math.nan)) is None
    alike = critical_difference(np.ones((3, 4)))
    assert (alike.ranks, alike.p) == ((2.0, 2.0, 2.0), 1.0)


def test_a_data_set_is_the_mean_over_its_seeds():
    scores = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 5.0, ("b", 1): 9.0}
    assert mean_by_data_set(scores, [("a", 0), ("a", 1), ("b", 0)]) == {"a": 2.0, "b": 5.0}
