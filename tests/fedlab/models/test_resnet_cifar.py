"""Residual networks for small images: counted against the papers, and shortcuts against plain indexing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.models.resnet10 import PaddedShortcut
from fedlab.models.resnet_cifar import resnet18, resnet20


def count(module):
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("kind", ["batch", "group"])
@pytest.mark.parametrize(
    ("network", "published", "features"),
    [
        (resnet20, 269_722, 64),  # 0.27 M, He et al. 2016, table 6
        (resnet18, 11_173_962, 512),  # 11.17 M, kuangliu/pytorch-cifar
    ],
)
def test_parameters_are_those_published(network, kind, published, features):
    model = network(10, kind)
    assert count(model) == published
    assert model.head.in_features == features
    assert bool([layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]) == (kind == "batch")


@pytest.mark.parametrize(("network", "weighted"), [(resnet20, 20), (resnet18, 18)])
def test_the_number_in_the_name_counts_layers_on_the_longest_path(network, weighted):
    model = network(10)
    projections = [layer for block in model.features if hasattr(block, "around") for layer in block.around.modules()]
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len([layer for layer in layers if layer not in projections]) == weighted


@pytest.mark.parametrize("network", [resnet20, resnet18])
def test_images_are_halved_twice_or_thrice_and_become_logits(network):
    model = network(7).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before_pooling = model.features[:-1](x)
        assert before_pooling.shape[-1] == (8 if network is resnet20 else 4)
        assert torch.allclose(model(x), model.head(before_pooling.mean((2, 3))))
        assert model(x).shape == (2, 7)


def test_a_shortcut_without_parameters_takes_pixels_and_adds_zeros():
    x = torch.randn(2, 4, 6, 6)
    out = PaddedShortcut(3, 2)(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert out.shape == (2, 7, 3, 3) and not out[:, 4:].any()


def test_a_network_learns_a_few_images_by_heart():
    torch.manual_seed(0)
    model, x, y = resnet20(2), torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert torch.equal(model(x).argmax(1), y)
