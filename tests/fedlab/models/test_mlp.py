"""The perceptron: counted against the paper, and equal to matrix products."""

from __future__ import annotations

import torch

from fedlab.models.mlp import MLP


def test_parameters_are_those_published():
    assert sum(weight.numel() for weight in MLP(10, 28 * 28).parameters()) == 199_210  # McMahan et al. 2017
    assert sum(weight.numel() for weight in MLP(10, 3 * 32 * 32).parameters()) == 656_810


def test_logits_are_products_and_maxima():
    model, x = MLP(3, 12, (5,)), torch.randn(4, 3, 2, 2)
    hidden = (x.flatten(1) @ model.features[1].weight.T + model.features[1].bias).clamp_min(0)
    assert torch.allclose(model.features(x), hidden, atol=1e-6)
    assert torch.allclose(model(x), hidden @ model.head.weight.T + model.head.bias, atol=1e-6)
