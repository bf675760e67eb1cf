"""Losses against soft labels: by hand, and that the parts add up to the whole."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.losses.soft_labels import DIVERGENCES, FLOOR, shuffle_targets, soft_targets


@pytest.fixture
def student():
    torch.manual_seed(0)
    return torch.randn(6, 4, dtype=torch.double, requires_grad=True)


@pytest.fixture
def soft():
    torch.manual_seed(1)
    return soft_targets(3 * torch.randn(6, 4, dtype=torch.double))


def slope(name, student, soft):
    return torch.autograd.grad(DIVERGENCES[name](student, soft), student)[0]


def test_soft_labels_are_raised_and_not_normalized_again():
    soft = soft_targets(torch.tensor([[math.log(3.0), 0.0]]))
    assert soft.tolist()[0] == pytest.approx([0.75 + FLOOR, 0.25 + FLOOR])
    assert soft_targets(torch.tensor([[math.log(3.0), 0.0]]), 2.0).tolist()[0] == pytest.approx(
        [0.9 + FLOOR, 0.1 + FLOOR]
    )


def test_by_hand_on_two_classes():
    student, soft = torch.zeros(1, 2), torch.tensor([[0.75, 0.25]])
    surprise = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(DIVERGENCES["kl"](student, soft)) == pytest.approx(math.log(2) - surprise)
    assert float(DIVERGENCES["hard"](student, soft)) == pytest.approx(math.log(2))
    assert float(DIVERGENCES["entropy"](student, soft)) == pytest.approx(0.0, abs=1e-6)
    crossed = -(math.log(0.75) + math.log(0.25)) / 2
    assert float(DIVERGENCES["reverse_cross_entropy"](student, soft)) == pytest.approx(crossed)
    assert float(DIVERGENCES["reverse_kl"](student, soft)) == pytest.approx(crossed - math.log(2))


def test_kl_has_the_gradient_of_cross_entropy_on_soft_labels(student, soft):
    """The entropy in it is the teacher's, a constant: it regularizes nothing."""
    crossed = -(soft * student.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(slope("kl", student, soft), torch.autograd.grad(crossed, student)[0])


def test_reverse_kl_is_its_two_parts(student, soft):
    parts = DIVERGENCES["reverse_cross_entropy"](student, soft) + DIVERGENCES["entropy"](student, soft) - math.log(4)
    torch.testing.assert_close(DIVERGENCES["reverse_kl"](student, soft), parts)
    both = slope("reverse_cross_entropy", student, soft) + slope("entropy", student, soft)
    torch.testing.assert_close(slope("reverse_kl", student, soft), both)


def test_a_student_like_the_teacher_is_where_both_divergences_vanish(soft):
    student = soft.log().requires_grad_()
    for name in ("kl", "reverse_kl"):
        assert float(DIVERGENCES[name](student, soft).detach()) == pytest.approx(0.0, abs=1e-5)
        assert slope(name, student, soft).abs().max() < 1e-5


def test_shuffled_labels_are_the_same_ones_in_another_order(soft):
    torch.manual_seed(3)
    other = shuffle_targets(soft)
    assert not torch.equal(other, soft)
    torch.testing.assert_close(other.sort(0).values, soft.sort(0).values)
