"""Sharpness-aware consistency: the perturbation by hand, and value and gradient of a logistic regression."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedlab.losses.sharpness import perturbation, sharpness_consistency


def test_a_weight_is_perturbed_relative_to_its_size_and_a_bias_is_not():
    weights = {"weight": torch.tensor([1.99, -0.49]), "bias": torch.tensor([5.0])}
    found = perturbation(weights, [torch.tensor([1.5, 2.0]), torch.tensor([0.0])], 0.1)
    # T = (2, .5): T g = (3, 1) of norm sqrt(10); T^2 g = (6, .5)
    torch.testing.assert_close(found["weight"], 0.1 * torch.tensor([6.0, 0.5]) / 10**0.5)
    assert found["bias"].tolist() == [0.0]


def test_value_and_gradient_are_those_at_the_perturbed_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).train()
    x, y, sure = torch.randn(6, 4), torch.randint(3, (6,)), torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    logits = model(x)
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = sharpness_consistency(model, x, logits, y, sure, 0.5)
    found.backward()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics[name])

    gradients = [one.grad.clone() for one in model.parameters()]
    model.zero_grad()
    (cross_entropy(model(x)[sure], y[sure], reduction="sum") / 6).backward()
    change = perturbation(dict(model.named_parameters()), [one.grad for one in model.parameters()], 0.5)
    for name, one in model.named_parameters():  # climb, and take the gradient there
        one.data += change[name]
    model.zero_grad()
    p, q = logits.detach().softmax(1), model(x).softmax(1)
    wanted = (p * (p / q).log())[sure].sum() / 6
    wanted.backward()
    assert wanted > 0.01
    torch.testing.assert_close(found, wanted)
    for gradient, one in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, one.grad, rtol=1e-4, atol=1e-6)


def test_without_a_sure_example_nothing_is_asked_for():
    model = nn.Linear(2, 2)
    x = torch.eye(2)
    found = sharpness_consistency(model, x, model(x), torch.tensor([0, 1]), torch.zeros(2).bool(), 0.1)
    found.backward()
    assert found.item() == 0 and not model.weight.grad.any()
