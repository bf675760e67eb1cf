"""Heads that a late joiner makes or chooses: the balance is exact, and the choice is the head that agrees most."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.models.feature_classifier import probabilities
from fedlab.strategies.dualadapt.initial_head import balanced, initial_head, most_agreeing, sign_test
from fedlab.strategies.dualadapt.shared import Options

Z = torch.eye(3).repeat(4, 1) + 0.05 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))

LABELS = torch.arange(3).repeat(4)


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


class Told(nn.Module):
    """Gives each of ``Z`` a class that is known beforehand."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, z):
        return 9 * torch.eye(3)[self.classes]


def with_errors(*rows):
    """A head that gives all rows of ``Z`` their label but these."""
    classes = LABELS.clone()
    classes[list(rows)] = (classes[list(rows)] + 1) % 3
    return Told(classes)


def test_the_head_that_agrees_most_is_taken_and_of_equals_the_first():
    head, candidates = Rotated(1), [Rotated(2), Rotated(0), Rotated(0)]
    assert most_agreeing(head, candidates, Z, LABELS) is candidates[1]


@pytest.mark.parametrize(
    ("lost", "gained", "others", "clear"),
    [
        (0, 6, 0, True),  # 1 of 64 by chance
        (0, 5, 0, False),  # 1 of 32
        (1, 8, 0, True),  # 10 of 512
        (2, 8, 0, False),  # 56 of 1024
        (0, 6, 1, False),  # 1 of 64 is more than a half of 0.025
        (0, 7, 1, True),
        (0, 0, 0, False),
    ],
)
def test_a_candidate_is_taken_only_where_its_advantage_is_none_of_chance(lost, gained, others, clear):
    head, candidate = with_errors(*range(gained)), with_errors(*range(gained, gained + lost))
    candidates = [*([with_errors(*range(12))] * others), candidate]
    assert most_agreeing(head, candidates, Z, LABELS) is (candidate if clear else head)


def test_without_candidates_the_head_stays():
    head = Rotated(1)
    assert most_agreeing(head, [], Z, LABELS) is head


def test_the_sign_test_by_hand():
    assert sign_test(3, 1) == pytest.approx(5 / 16)
    assert sign_test(0, 0) == sign_test(0, 4) == 1.0


@pytest.mark.parametrize(("start", "taken"), [("agreement", "head"), ("nearest", None), ("global", None)])
def test_agreement_is_with_the_global_heads_own_labels(start, taken):
    head, other = Rotated(0), Rotated(2)
    found = initial_head(head, [other], Z, Options(late_joiner_init=start, num_neighbors=3))
    assert found is (head if taken else None)
