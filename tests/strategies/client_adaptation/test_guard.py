"""The guard's verdict on models whose worth is plain to see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedlab.data.dataset import ArrayDataset
from fedlab.strategies.client_adaptation.guard import choose, mutual_information, too_few, view_information
from fedlab.strategies.client_adaptation.spec import Client

CPU = torch.device("cpu")
HEAD, SENT = nn.Identity(), nn.Identity()
X = 20 * torch.eye(4).repeat(5, 1)  # twenty inputs that are their own logits, of four classes in turn


class Constant(nn.Module):
    """Predicts the first class for everything."""

    def forward(self, x):
        return 20 * torch.eye(4)[torch.zeros(len(x), dtype=torch.long)]


def client(view=torch.clone):
    return Client(SENT, HEAD, ArrayDataset({"x": X}), view, torch.clone, CPU)


def test_certain_and_balanced_predictions_have_all_information_and_constant_ones_none():
    assert view_information(nn.Identity(), HEAD, client()) == pytest.approx(math.log(4), abs=1e-3)
    assert view_information(Constant(), HEAD, client()) == pytest.approx(0, abs=1e-6)
    shuffled = client(lambda x: x[torch.randperm(len(x))])
    torch.manual_seed(0)
    assert view_information(nn.Identity(), HEAD, shuffled) < 0.5  # predictions that depend on the view alone


def test_information_by_hand():
    joint = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    wanted = 2 * (3 / 8 * math.log(3 / 2) + 1 / 8 * math.log(1 / 2))
    assert float(mutual_information(joint)) == pytest.approx(wanted)


def test_a_model_that_has_collapsed_is_not_kept_unless_the_guard_is_off():
    good, bad = nn.Identity(), Constant()
    labels = torch.arange(4).repeat(5)
    guarded, unguarded = (choose(good, bad, HEAD, client(), labels, 0.0, guard) for guard in (True, False))
    assert guarded.features is SENT
    assert guarded.report["adapted"] == 0.0
    assert unguarded.features is bad
    assert unguarded.report["agreement"] == pytest.approx(0.25)  # with the old model's classes and with the labels
    assert choose(bad, good, HEAD, client(), labels, 0.0).features is good


@pytest.mark.parametrize(("min_agreement", "kept"), [(0.6, True), (0.65, False)])
def test_a_model_that_agrees_too_little_with_old_classes_and_first_labels_is_not_kept(min_agreement, kept):
    old, new = Constant(), nn.Identity()  # a quarter of the examples are of the first class, so keep theirs
    labels = torch.arange(4).repeat(5)
    found = choose(old, new, HEAD, client(), labels, min_agreement)
    assert found.report["agreement"] == pytest.approx((0.25 + 1) / 2)
    assert found.features is (new if kept else SENT)
    assert found.report["adapted"] == float(kept)


@pytest.mark.parametrize(("per_class", "few"), [(0, False), (5, False), (6, True)])
def test_examples_are_counted_for_each_class_of_the_model(per_class, few):
    assert too_few(client(), per_class) == few  # twenty examples, four classes
