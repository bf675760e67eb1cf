"""Scores client by client, and the distribution over clients, by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from fedlab.comparison.breakdown import by_client, by_quantile

KEYS = ["label"]


def final(scores):
    """Rows of seeds, each the scores of its clients."""
    rows = [
        {"label": "a", "seed": seed, "client": f"c{at}", "score": score}
        for seed, of in enumerate(scores)
        for at, score in enumerate(of)
    ]
    return pd.DataFrame(rows, columns=[*KEYS, "seed", "client", "score"])


def test_a_client_s_mean_is_over_its_seeds():
    found = by_client(final([[0.2, 0.5], [0.4, math.nan]]), KEYS).set_index("client")
    assert found.loc["c0", ["n", "mean"]].tolist() == [2, pytest.approx(0.3)]
    assert found.loc["c1", ["n", "mean"]].tolist() == [1, 0.5] and math.isnan(found.loc["c1", "low"])


@pytest.mark.parametrize(("direction", "worst"), [(1, 0.0), (-1, 0.9), (0, None)])
def test_the_worst_tenth_is_that_of_each_seed(direction, worst):
    found = by_quantile(final([[at / 10 for at in range(10)]] * 2), KEYS, direction).set_index("client")
    assert ("worst tenth" in found.index) == (worst is not None) and "mean" not in found.index
    if worst is not None:
        assert found.loc["worst tenth", "mean"] == pytest.approx(worst)
    assert found.loc["median", "mean"] == pytest.approx(0.45)


def test_nothing_is_a_table_without_rows():
    assert by_client(final([]), KEYS).empty and by_quantile(final([]), KEYS, 1).empty
