"""Networks for digits: numbers of parameters as published, shapes, G and F apart."""

from __future__ import annotations

import pytest
import torch

from fedlab.models.digits import McdNet, SmallNet
from fedlab.seeds import seeded


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def test_the_mcd_network_has_the_published_numbers_of_parameters():
    with torch.device("meta"):  # shapes without memory
        model = McdNet()
    assert parameters(model.features) == 25_487_808
    assert parameters(model.head) == 6_318_090


def test_the_mcd_network_counted_by_hand():
    convolutions = (3 * 25 + 1) * 64 + (64 * 25 + 1) * 64 + (64 * 25 + 1) * 128
    norms = 2 * (64 + 64 + 128 + 3072)
    assert convolutions + norms + (8192 + 1) * 3072 == 25_487_808
    assert (3072 + 1) * 2048 + 2 * 2048 + (2048 + 1) * 10 == 6_318_090


def test_shapes_of_the_mcd_network():
    with torch.device("meta"):
        model, x = McdNet(classes=7), torch.zeros(4, 3, 32, 32)
    assert model.features(x).shape == (4, 3072)
    assert model(x).shape == (4, 7)


@pytest.mark.parametrize(("width", "classes"), [(128, 10), (16, 3)])
def test_shapes_of_the_small_network(width, classes):
    model = SmallNet(width, classes)
    x = torch.zeros(4, 3, 32, 32)
    assert model.features(x).shape == (4, width)
    assert model(x).shape == (4, classes)
    assert parameters(model.head) == (width + 1) * 64 + 65 * classes


def test_the_model_is_its_head_on_its_features():
    with seeded("model"):
        model = SmallNet().eval()
        x = torch.randn(4, 3, 32, 32)
    assert torch.equal(model(x), model.head(model.features(x)))
    assert {name.split(".")[0] for name in model.state_dict()} == {"features", "head"}
    assert (model.features(x) >= 0).all()  # F and the mixtures see what a ReLU left


def test_no_example_looks_at_another_in_evaluation():
    with seeded("model"):
        model = SmallNet().eval()
        x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
