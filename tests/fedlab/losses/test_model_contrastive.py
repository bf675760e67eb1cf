"""The model-contrastive loss by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.losses.model_contrastive import model_contrastive_loss


def test_two_inputs_by_hand():
    z = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    near, far = torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # cosines 1 and 0 of the first input, 0 and 1 of the second, over a temperature of 0.5
    wanted = [-math.log(math.exp(2) / (math.exp(2) + 1)), -math.log(1 / (math.exp(2) + 1))]
    assert float(model_contrastive_loss(z, near, far, 0.5)) == pytest.approx(sum(wanted) / 2, rel=1e-6)


def test_of_two_equal_models_it_is_log_2_without_a_gradient():
    z, other = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    loss = model_contrastive_loss(z, other, other, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
    torch.testing.assert_close(z.grad, torch.zeros(4, 3), rtol=0, atol=1e-7)


def test_features_of_any_shape_are_one_vector_for_each_input():
    z, near, far = torch.randn(3, 5, 2, 2, 2).unbind(0)
    flat = model_contrastive_loss(*(each.flatten(1) for each in (z, near, far)), 0.5)
    assert torch.equal(model_contrastive_loss(z, near, far, 0.5), flat)
