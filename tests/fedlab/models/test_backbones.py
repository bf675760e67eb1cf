"""Backbones of few-shot transfer: counted by hand and against the papers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.models.convnet import ConvNet
from fedlab.models.mixer import Mixer, MixerShape
from fedlab.models.norm_layers import GlobalAvgPool, norm_layer
from fedlab.models.resnet10 import ResNet10


def count(module):
    return sum(weight.numel() for weight in module.parameters())


def test_resnet10_is_counted_by_hand():
    def block(before, channels):
        around = before * channels + 2 * channels if before != channels else 0
        return 9 * before * channels + 9 * channels**2 + 4 * channels + around

    wanted = 3 * 64 * 49 + 128 + block(64, 64) + block(64, 128) + block(128, 256) + block(256, 512)
    model = ResNet10(64)
    assert count(model.features) == wanted == 4_905_792
    assert model.head.in_features == 512
    assert count(ResNet10(64, "group").features) == wanted
    assert not [layer for layer in ResNet10(64, "group").modules() if isinstance(layer, nn.BatchNorm2d)]


def test_resnet10_draws_its_weights_as_published():
    torch.manual_seed(0)
    last = ResNet10(5).features[7].body[3].weight.detach()
    assert float(last.std()) == pytest.approx((2 / (9 * 512)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("model", "size", "width"),
    [
        (ResNet10(7), 64, 512),
        (ConvNet(7), 32, 256),
        (ConvNet(7, "batch"), 64, 256),
        (Mixer(7, 32, MixerShape(4, 24, 2, 8, 48)), 32, 24),
    ],
)
def test_images_become_features_and_logits(model, size, width):
    x = torch.randn(2, 3, size, size)
    assert model.eval().features(x).shape == (2, width)
    assert torch.equal(model(x), model.head(model.features(x)))
    assert model(x).shape == (2, 7)


def test_group_norm_looks_at_each_image_alone_and_batch_norm_does_not():
    x = torch.randn(4, 16, 3, 3)
    for kind, alone in (("group", True), ("batch", False)):
        layer = norm_layer(kind, 16).train()
        assert torch.allclose(layer(x)[:2], layer(x[:2]), atol=1e-6) is alone


def test_the_mean_is_over_height_and_width():
    x = torch.arange(16.0).view(1, 2, 2, 4)
    assert GlobalAvgPool()(x).tolist() == [[3.5, 11.5]]
