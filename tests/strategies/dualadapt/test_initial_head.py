"""Heads that a late joiner makes or chooses: the balance is exact, and the choice is the head that agrees most."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.models.feature_classifier import probabilities
from fedlab.strategies.dualadapt.initial_head import balanced, initial_head, most_agreeing
from fedlab.strategies.dualadapt.shared import Options

Z = torch.eye(3).repeat(4, 1) + 0.05 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


class Rotated(nn.Module):
    """Gives class (i + turn) to an input that is largest at i."""

    def __init__(self, turn):
        super().__init__()
        self.turn = turn

    def forward(self, z):
        return 9 * z.roll(self.turn, 1)


def test_a_balanced_heads_probabilities_are_the_heads_divided_by_their_mean():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))
    p = probabilities(head, Z)
    wanted = p / p.mean(0)
    torch.testing.assert_close(probabilities(balanced(head, Z), Z), wanted / wanted.sum(1, keepdim=True))
    torch.testing.assert_close(probabilities(head, Z), p)  # the head itself is as it was


def test_a_head_without_biases_stays():
    head = nn.Linear(3, 4, bias=False)
    torch.testing.assert_close(probabilities(balanced(head, Z), Z), probabilities(head, Z))


def test_the_head_that_agrees_most_is_taken_and_of_equals_the_first():
    heads, labels = [Rotated(1), Rotated(0), Rotated(0)], torch.arange(3).repeat(4)
    assert most_agreeing(heads, Z, labels) is heads[1]


@pytest.mark.parametrize(("start", "taken"), [("agreement", "head"), ("nearest", None), ("global", None)])
def test_agreement_is_with_the_global_heads_own_labels(start, taken):
    head, other = Rotated(0), Rotated(2)
    found = initial_head(head, [other], Z, Options(late_joiner_init=start, num_neighbors=3))
    assert found is (head if taken else None)
