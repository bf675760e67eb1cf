"""Convolutions as products beside torch's own, alone and mapped over models."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn.functional import conv2d

from fedlab.vectorized import stacked_convolution
from fedlab.vectorized.stacked_convolution import ConvolutionsAsProducts
from fedlab.vectorized.stacked_model import StackedModel

CASES = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2)},
    {"stride": [3, 1], "padding": [1, 0]},
    {"dilation": 2},
    {"padding": "same"},
]


def tensors(kernel=3):
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 5, 3, 9, 8), (4, 6, 3, kernel, kernel), (4, 6)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("given", CASES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_of_mapped_convolutions_are_torchs(given, biased):
    x, weight, bias = tensors()

    def mapped():
        if biased:
            return vmap(lambda own, kernel, shift: conv2d(own, kernel, shift, **given))(x, weight, bias)
        return vmap(lambda own, kernel: conv2d(own, kernel, **given))(x, weight)

    def gradients(values):
        return torch.autograd.grad(values.square().sum(), [x, weight])

    with ConvolutionsAsProducts():
        found = mapped()
    expected = mapped()
    assert torch.allclose(found, expected)
    assert found.shape == expected.shape
    for one, other in zip(gradients(found), gradients(expected), strict=True):
        assert torch.allclose(one, other)


def test_groups_and_single_images_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(stacked_convolution, "convolution_as_product", None)
    x = torch.randn(2, 4, 6, 6)
    with ConvolutionsAsProducts():
        assert conv2d(x, torch.randn(4, 2, 3, 3), groups=2).shape == (2, 4, 4, 4)
        assert conv2d(x[0], torch.randn(5, 4, 3, 3)).shape == (5, 4, 4)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_a_stack_of_convolutional_networks_has_the_same_losses_and_gradients(monkeypatch, padding_mode):
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Conv2d(3, 4, 5, 2, 2, padding_mode=padding_mode), nn.GroupNorm(2, 4), nn.Flatten())
        for _ in range(3)
    ]
    batch = {"x": torch.randn(3, 6, 3, 8, 8)}

    def loss(model, batch):
        return model(batch["x"]).abs().mean()

    def losses():
        stack = StackedModel(models[0], [one.state_dict() for one in models], loss)
        values = stack.losses(batch)
        return values.detach(), torch.autograd.grad(values.sum(), list(stack.weights.values()))

    plain, gradients = losses()
    monkeypatch.setattr(stacked_convolution, "DEVICES", {"cpu"})
    called = []
    product = stacked_convolution.convolution_as_product
    monkeypatch.setattr(
        stacked_convolution, "convolution_as_product", lambda *given: called.append(1) or product(*given)
    )
    found, others = losses()
    assert called
    assert torch.allclose(found, plain, rtol=1e-5)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in zip(gradients, others, strict=True))
