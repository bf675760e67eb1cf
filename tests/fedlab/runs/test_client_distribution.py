"""A thousand clients in a few numbers, against numbers by hand."""

from __future__ import annotations

import math

import pytest

from fedlab.runs.client_distribution import FEW, WORST, distribution, distributions, in_order, worst_first


def test_quantiles_and_the_worst_tenth_by_hand():
    values = [at / 100 for at in range(101)]
    found = distribution(reversed(values), 1)
    assert list(found) == ["mean", WORST, "minimum", "10 %", "25 %", "median", "75 %", "90 %", "maximum"]
    assert [found[name] for name in ("minimum", "10 %", "25 %", "median", "75 %", "90 %", "maximum")] == pytest.approx(
        [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1]
    )
    assert found["mean"] == pytest.approx(0.5)
    assert found[WORST] == pytest.approx(sum(values[:11]) / 11)  # a tenth of 101, rounded up
    assert distribution(values, -1)[WORST] == pytest.approx(sum(values[-11:]) / 11)
    assert WORST not in distribution(values, 0)


def test_what_is_not_finite_is_left_out():
    assert distribution([math.nan, 0.5, math.inf], 1) == dict.fromkeys(distribution([0.5], 1), 0.5)
    assert distribution([math.nan], 1) == distribution([], 1) == {}


def test_rows_of_a_table_have_the_metrics_that_somebody_reported():
    clients = {"a": {"accuracy": 0.2, "loss": 3.0}, "b": {"accuracy": 0.4}}
    rows = distributions(clients, {"accuracy": 1, "loss": 0, "psnr": 1})
    assert rows["median"] == pytest.approx({"accuracy": 0.3, "loss": 3.0})
    assert rows[WORST] == {"accuracy": 0.2}
    assert distributions({}, {"accuracy": 1}) == {}


def test_the_worst_come_first_in_the_direction_of_the_metric():
    clients = {"c-10": {"m": 1.0}, "c-2": {"m": 1.0}, "c-3": {"m": 2.0}, "c-4": {}, "c-5": {"m": math.nan}}
    assert worst_first(clients, "m", 1) == ["c-2", "c-10", "c-3"]
    assert worst_first(clients, "m", -1) == ["c-3", "c-2", "c-10"]
    assert in_order(["c-10", "b", "c-2"]) == ["b", "c-2", "c-10"]
    assert FEW < 100
