"""Statistics against scipy and statsmodels on samples that are written down here, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from fedlab.comparison.statistics import closed, first_reach, holm, interval, paired, ranks

ONE, OTHER = [0.71, 0.69, 0.74, 0.70, 0.76], [0.65, 0.66, 0.69, 0.61, 0.72]


def test_an_interval_is_students():
    found = interval(ONE)
    low, high = DescrStatsW(ONE).tconfint_mean(alpha=0.05)
    assert (found.n, found.mean) == (5, pytest.approx(0.72))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert interval(ONE, level=0.9).high == pytest.approx(DescrStatsW(ONE).tconfint_mean(alpha=0.1)[1])


def test_an_interval_by_hand():
    found = interval([1.0, 3.0])  # deviation sqrt(2), error 1, t(0.975, 1) = 12.7062
    assert (found.low, found.high) == (pytest.approx(2 - 12.7062, abs=1e-4), pytest.approx(2 + 12.7062, abs=1e-4))


def test_one_value_has_no_interval_and_none_no_mean():
    alone, none = interval([0.5, math.nan]), interval([math.nan])
    assert (alone.n, alone.mean) == (1, 0.5)
    assert math.isnan(alone.low) and math.isnan(alone.high)
    assert none.n == 0 and math.isnan(none.mean)


def test_a_paired_difference_is_scipys():
    found, test = paired(ONE, OTHER), stats.ttest_rel(ONE, OTHER)
    assert found.p == pytest.approx(test.pvalue)
    assert found.difference.mean == pytest.approx(0.054)
    expected = test.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_a_pair_that_lacks_a_value_is_left_out():
    assert paired([*ONE, math.nan, 9.0], [*OTHER, 0.1, math.nan]) == paired(ONE, OTHER)


def test_equal_samples_and_samples_that_differ_by_a_constant():
    assert paired(ONE, ONE).p == 1.0
    swapped = paired([0.1 + 0.2, 0.5, 0.1 + 0.7], [0.3, 0.5, 0.8])  # as two means of the same numbers in another order
    assert (swapped.p, swapped.effect, swapped.difference.mean) == (1.0, 0.0, 0.0)
    assert paired([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).p == 0.0
    rounded = paired([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])  # differences of 0.1, each with a rounding of its own
    assert rounded.p == 0.0 and math.isnan(rounded.effect)
    assert math.isnan(paired([1.0], [2.0]).p)


def test_the_effect_size_by_hand():
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])  # differences 1, 2, 3: mean 2, deviation 1, J(2) = 1 / sqrt(pi)
    assert found.effect == pytest.approx(2 / math.sqrt(math.pi))
    assert paired(ONE, ONE).effect == 0.0
    assert math.isnan(paired([1.0, 2.0], [0.0, 0.5]).effect) and math.isnan(
        paired([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).effect
    )


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03], [0.2, 0.2, 0.001, 0.9, 0.04], [0.5], [0.6, 0.7]])
def test_holm_is_statsmodels(p):
    assert holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))


def test_holm_by_hand_and_without_what_was_not_compared():
    assert holm([0.01, math.nan, 0.04, 0.03])[2:] == pytest.approx([0.06, 0.06])
    assert holm([0.01, math.nan, 0.04, 0.03])[0] == pytest.approx(0.03)
    assert math.isnan(holm([0.01, math.nan])[1])
    assert holm([]) == []


def test_ranks_are_scipys_with_ties_averaged():
    table = np.array([[0.9, 0.5, 0.7], [0.8, 0.5, 0.9], [0.1, 0.2, 0.3]])
    assert ranks(table).tolist() == pytest.approx([(1 + 1.5 + 2) / 3, (2 + 1.5 + 1) / 3, 3.0])
    assert ranks(table).tolist() == pytest.approx(list(stats.rankdata(-table, axis=0).mean(1)))


def test_a_score_that_differs_by_its_rounding_shares_a_rank_whatever_the_others_are():
    assert ranks([[0.1 + 0.2], [0.3], [-1e20]]).tolist() == [1.5, 1.5, 3.0]
    assert ranks([[0.3], [0.2], [-1e20]]).tolist() == [1.0, 2.0, 3.0]
    assert ranks([[0.0], [math.inf], [1e-200]]).tolist() == [3.0, 1.0, 2.0]


def test_a_block_that_lacks_a_score_gives_no_rank():
    assert ranks([[0.9, math.nan], [0.1, 0.8]]).tolist() == [1.0, 2.0]
    assert np.isnan(ranks([[math.nan], [0.8]])).all()


def test_the_share_of_a_gap():
    gap = interval([7.0, 8.0, 9.0])
    assert (closed(2.0, gap), closed(-2.0, gap)) == (0.25, -0.25)
    assert math.isnan(closed(2.0, interval([-1.0, 1.0, 3.0])))  # there may be no gap
    assert math.isnan(closed(2.0, interval([8.0]))) and math.isnan(closed(2.0, interval([-9.0, -8.0])))


def test_less_may_be_better():
    assert first_reach([1.0, 0.8, 0.5, 0.3], 0.6, direction=-1) == 2
    assert first_reach([1.0, 0.8], 0.6, direction=-1) is None


def test_the_first_round_at_the_target():
    assert first_reach([0.1, 0.5, 0.4, 0.6], 0.5) == 1
    assert first_reach([0.1, math.nan, 0.4], 0.5) is None
    mean = np.mean([0.7, 0.7, 0.7])
    assert mean < 0.7 and first_reach([0.5, mean], 0.7) == 1  # below by its rounding alone
