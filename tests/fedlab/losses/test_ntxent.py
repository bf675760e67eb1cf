"""NT-Xent beside equation 1 written as a double loop."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.losses.ntxent import nt_xent


def plain_loop(first, second, temperature):
    z = [row / row.norm() for row in torch.cat([first, second]).double()]
    n, total = len(first), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = sum(math.exp(float(z[i] @ z[j]) / temperature) for j in range(2 * n) if j != i)
        total -= math.log(math.exp(float(z[i] @ z[partner]) / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("count", [2, 7])
def test_it_is_the_double_loop(temperature, count):
    torch.manual_seed(0)
    first, second = torch.randn(count, 5), torch.randn(count, 5)
    assert float(nt_xent(first, second, temperature)) == pytest.approx(plain_loop(first, second, temperature), rel=1e-5)


def test_two_orthogonal_images_by_hand():
    z = torch.eye(2)  # -log of e / (e + 1 + 1)
    assert float(nt_xent(z, z)) == pytest.approx(math.log(math.e + 2) - 1)


def test_only_directions_count_and_views_may_change_places():
    torch.manual_seed(1)
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.allclose(nt_xent(first, second), nt_xent(7 * first, 0.1 * second))
    assert torch.allclose(nt_xent(first, second), nt_xent(second, first))


@pytest.mark.parametrize("shapes", [((1, 3), (1, 3)), ((4, 3), (3, 3)), ((4,), (4,))])
def test_views_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="two views need one shape"):
        nt_xent(*map(torch.ones, shapes))
