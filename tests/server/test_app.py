from __future__ import annotations

import pytest

from fedlab.server.app import mean_over


def test_a_mean_is_over_the_clients_that_reported_and_each_counts_once():
    clients = {
        "a": {"accuracy": 0.5, "accuracy_local": 0.4, "num-examples": 1000.0},
        "b": {"accuracy": 1.0, "num-examples": 10.0},
    }
    assert mean_over(clients) == {"accuracy": pytest.approx(0.75), "accuracy_local": pytest.approx(0.4)}


def test_no_client_no_mean():
    assert mean_over({}) == {}
