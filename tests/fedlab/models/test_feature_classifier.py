from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.errors import ConfigError
from fedlab.models.digits import SmallNet
from fedlab.models.feature_classifier import (
    EnsembleHead,
    FlattenRows,
    check_parts,
    features_of,
    group_rows,
    head_of,
    missing_parts,
    probabilities,
    subsample_rows,
)
from fedlab.seeds import seeded


def test_a_model_in_two_parts_is_their_composition():
    torch.manual_seed(0)
    model, x = SmallNet().eval(), torch.randn(3, 3, 32, 32)
    assert missing_parts(model) == []
    assert torch.equal(head_of(model)(features_of(model)(x)), model(x))


def test_what_is_missing_is_named():
    model = nn.Linear(2, 2)
    model.features = nn.Identity()
    assert missing_parts(model) == ["head"]
    assert missing_parts(nn.Linear(2, 2)) == ["features", "head"]
    model.head = "not a module"
    assert missing_parts(model) == ["head"]


def test_probabilities_are_those_of_evaluation_mode():
    head = nn.Sequential(nn.Dropout(0.9), nn.Linear(4, 3)).train()
    z = torch.randn(5, 4)
    assert torch.allclose(probabilities(head, z), head[1](z).softmax(1))
    assert probabilities(head, z).sum(1) == pytest.approx(torch.ones(5).numpy(), abs=1e-6)


def test_the_average_is_of_probabilities_not_of_logits():
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    z = torch.randn(5, 2)
    wanted = (first(z).softmax(1) + second(z).softmax(1)) / 2
    assert torch.allclose(EnsembleHead(first, second)(z).exp(), wanted, atol=1e-6)


def test_a_model_that_a_strategy_cannot_serve_is_refused_with_what_it_lacks():
    check_parts(SmallNet(), "dualadapt", "digits")
    with pytest.raises(ConfigError, match=r"fed_mcd needs .* Linear of workload 'lines' lacks features and head"):
        check_parts(nn.Linear(2, 2), "fed_mcd", "lines")


def test_few_rows_stay_and_draw_nothing_and_many_are_drawn_without_repetition():
    z = torch.arange(10.0)[:, None]
    with seeded("rows"):
        assert subsample_rows(z, 10) is z
        after = torch.rand(1)
        drawn = subsample_rows(z, 4)
    with seeded("rows"):
        assert torch.equal(torch.rand(1), after)
    assert drawn.shape == (4, 1) and len(set(drawn.flatten().tolist())) == 4


def test_rows_of_each_example_stay_together_and_a_head_sees_them_one_after_another():
    rows, head = torch.arange(24.0).view(6, 4), nn.Linear(4, 3)
    assert group_rows(rows, 6) is rows
    views = group_rows(rows, 2)
    assert views.shape == (2, 3, 4) and torch.equal(views[1], rows[3:])
    assert torch.equal(FlattenRows(head)(views), head(rows)) and torch.equal(FlattenRows(head)(rows), head(rows))
