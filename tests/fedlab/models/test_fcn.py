"""The fully convolutional network: rows are pixels, in the order in which a view is read."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from fedlab.models.fcn import FcnNet, FlattenPixels
from fedlab.seeds import seeded


@pytest.fixture
def net():
    with seeded("model"):
        return FcnNet(11, width=12, fine=8, coarse=8).eval()


@pytest.mark.parametrize(("height", "width"), [(60, 80), (120, 160), (12, 20)])
def test_a_view_gives_a_row_for_every_second_pixel_of_every_second_line(net, height, width):
    z = net.features(torch.rand(2, 3, height, width))
    assert z.shape == (2 * height // 2 * width // 2, 12)
    assert net.head(z).shape == (len(z), 11)


def test_rows_go_view_by_view_and_line_by_line():
    maps = torch.arange(2 * 5 * 3 * 4).view(2, 5, 3, 4)
    rows = FlattenPixels()(maps)
    assert rows.shape == (24, 5)
    for view, line, place in ((0, 0, 0), (0, 2, 1), (1, 1, 3)):
        assert torch.equal(rows[view * 12 + line * 4 + place], maps[view, :, line, place])


def test_a_row_sees_its_own_view_only(net):
    x = torch.rand(3, 3, 24, 32)
    assert_close(net(x)[: 12 * 16], net(x[:1]), rtol=0, atol=1e-5)


def test_a_row_looks_around_its_pixel(net):
    """Where the input is changed, the rows there change most, and those of a pixel far away do as well: context."""
    x = torch.rand(1, 3, 60, 80)
    bent = x.clone()
    bent[:, :, 30:32, 40:42] += 2
    change = (net(bent) - net(x)).abs().sum(1).view(30, 40)
    assert divmod(int(change.argmax()), 40) in {(line, place) for line in (14, 15, 16) for place in (19, 20, 21)}
    assert change[15, 5] > 0 and (change > 0).float().mean() > 0.3


def test_every_weight_gets_a_gradient(net):
    net.train()(torch.rand(2, 3, 24, 32)).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in net.parameters())
