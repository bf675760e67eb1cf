"""Class balance: rows and columns of scaled probabilities."""

from __future__ import annotations

import torch

from fedlab.losses.class_balance import sinkhorn


def test_classes_get_as_many_examples_and_rows_stay_distributions():
    torch.manual_seed(0)
    p = torch.rand(40, 4) ** 3
    q = sinkhorn(p, 50)
    torch.testing.assert_close(q.sum(1), torch.ones(40))
    torch.testing.assert_close(q.sum(0), torch.full((4,), 10.0), rtol=1e-3, atol=1e-3)
    ratio = (q / p).log()  # of the form a_i + b_k
    torch.testing.assert_close(ratio - ratio[:1] - ratio[:, :1] + ratio[0, 0], torch.zeros(40, 4), rtol=0, atol=1e-3)


def test_without_a_turn_rows_are_scaled_and_nothing_else():
    assert sinkhorn(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), 0).tolist() == [[0.25, 0.75], [0.0, 0.0]]


def test_a_class_that_nobody_has_stays_empty():
    assert sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 5).tolist() == [[1.0, 0.0], [1.0, 0.0]]
