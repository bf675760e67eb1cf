"""d(p, q) by hand."""

from __future__ import annotations

import torch

from fedlab.losses.discrepancy import discrepancy


def test_numbers_by_hand():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    q = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(discrepancy(p, q), torch.tensor([0.0, 0.6, 2.0]))


def test_symmetric_and_at_most_two():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(50, 7, generator=generator).mul(5).softmax(1) for _ in range(2))
    d = discrepancy(p, q)
    assert torch.equal(d, discrepancy(q, p))
    assert (d > 0).all() and (d <= 2 + 1e-6).all()


def test_every_pixel_has_its_own():
    p, q = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    p[1, 2, 3, 4] = 1.0
    d = discrepancy(p, q)
    assert d.shape == (2, 4, 5)
    assert d[1, 3, 4] == d.sum() == 1.0


def test_its_gradient_is_the_sign():
    p = torch.tensor([[0.7, 0.3]], requires_grad=True)
    discrepancy(p, torch.tensor([[0.4, 0.6]])).sum().backward()
    assert p.grad.tolist() == [[1.0, -1.0]]
