"""Information maximization at its extremes."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.losses.information_maximization import entropy, information_maximization


def test_entropy_by_hand():
    found = entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert found.tolist() == pytest.approx([math.log(2), 0.0])


@pytest.mark.parametrize(
    ("p", "wanted"),
    [(torch.eye(3), -math.log(3)), (torch.full((4, 3), 1 / 3), 0.0), (torch.eye(3)[[0, 0]], 0.0)],
    ids=["certain and diverse", "uncertain", "certain and all alike"],
)
def test_it_is_least_where_predictions_are_certain_and_diverse(p, wanted):
    assert float(information_maximization(p)) == pytest.approx(wanted, abs=1e-6)
