"""Means over clients by round: which are over all that a cell tests."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from fedlab.comparison.mean_curves import mean_curves

KEYS = ["label", "seed"]


def frame(*rounds):
    """A cell whose rounds are dictionaries of client to score."""
    rows = [
        {"label": "a", "strategy": "s", "seed": 0, "round": number, "client": client, "score": score}
        for number, of in enumerate(rounds)
        for client, score in of.items()
    ]
    made = pd.DataFrame(rows, columns=[*KEYS, "strategy", "round", "client", "score"])
    return made.assign(bytes=10 * made["round"], seconds=1.0 * made["round"])


@pytest.mark.parametrize(
    ("sampled", "complete"), [(set(), [False, True, False, False]), ({("a", 0)}, [False, True, True, False])]
)
def test_a_mean_is_complete_over_all_clients_or_over_as_many_of_a_sample(sampled, complete):
    nan = math.nan
    rounds = {"x": 0.2}, {"x": 0.2, "y": 0.6, "z": 0.4}, {"x": 0.2, "y": 0.6, "w": 0.1}, {"x": nan}
    if not sampled:
        rounds = {"x": 0.2}, {"x": 0.2, "y": 0.6, "z": 0.4}, {"x": 0.2, "y": 0.6}, {"x": nan}
    found = mean_curves(frame(*rounds), KEYS, sampled)
    assert found["complete"].tolist() == complete
    assert found["score"].tolist()[:2] == pytest.approx([0.2, 0.4])
    assert found["bytes"].tolist() == [0, 10, 20, 30]


def test_no_cell_is_no_row():
    found = mean_curves(frame(), KEYS, set())
    assert found.empty and {"score", "bytes", "seconds", "complete"} <= set(found.columns)
