from __future__ import annotations

import math

import pytest
import torch

from fedlab.losses.adversarial import domain_loss, gradient_reversal


def test_a_reversed_gradient_is_scaled_and_turned_round():
    z = torch.tensor([1.0, -2.0], requires_grad=True)
    out = gradient_reversal(z, 0.3)
    assert torch.equal(out, z)
    (out * torch.tensor([1.0, 10.0])).sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([-0.3, -3.0]))


def test_the_loss_by_hand():
    source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    of_source = (math.log(2) + math.log(1 + math.exp(2.0))) / 2
    of_target = math.log(1 + math.exp(-1.0))
    assert float(domain_loss(source, target)) == pytest.approx((of_source + of_target) / 2)


def test_guessing_costs_log_2_and_both_domains_weigh_the_same():
    assert float(domain_loss(torch.zeros(3, 1), torch.zeros(50, 1))) == pytest.approx(math.log(2))
    assert float(domain_loss(torch.full((4, 1), -30.0), torch.full((1, 1), 30.0))) == pytest.approx(0.0, abs=1e-9)
    wrong = domain_loss(torch.zeros(9, 1), torch.full((1, 1), -10.0))
    assert float(wrong) == pytest.approx((math.log(2) + 10.0) / 2, rel=1e-3)
