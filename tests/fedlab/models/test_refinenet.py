"""NCSN's and NCSNv2's networks: sizes, the norm by hand, and what sees the level."""

from __future__ import annotations

import pytest
import torch

from fedlab.errors import ConfigError, DataError
from fedlab.models.refinenet import InstanceNormPlus, RefineNet
from fedlab.seeds import seeded


def test_the_norm_by_hand():
    layer, x = InstanceNormPlus(3, 2), torch.randn(2, 3, 4, 4)
    level = torch.tensor([1, 0])
    for row in range(2):
        gamma, alpha, beta = layer.table[level[row]]
        means = x[row].mean((1, 2))
        shifted = (means - means.mean()) / (means.var() + 1e-5).sqrt()
        for channel in range(3):
            image = x[row, channel]
            normal = (image - image.mean()) / (image.var(unbiased=False) + 1e-5).sqrt()
            wanted = gamma[channel] * (normal + alpha[channel] * shifted[channel]) + beta[channel]
            assert torch.allclose(layer(x, level)[row, channel], wanted, atol=1e-5)


@pytest.mark.parametrize(("levels", "millions"), [(10, 30.1), (0, 29.7)])
def test_sizes_for_cifar10(levels, millions):
    found = sum(weight.numel() for weight in RefineNet(3, 32, 128, levels).parameters())
    assert found / 1e6 == pytest.approx(millions, abs=0.05)


def test_only_ncsns_network_sees_the_level():
    x = torch.randn(2, 1, 12, 12)
    for levels, sees in ((4, True), (0, False)):
        with seeded("weights"):
            model = RefineNet(1, 12, 4, levels).eval()
        with torch.no_grad():
            one, other = model(x, torch.tensor([0, 0])), model(x, torch.tensor([0, 3]))
        assert one.shape == x.shape
        assert torch.allclose(one[0], other[0], atol=1e-5)
        assert torch.allclose(one[1], other[1], atol=1e-5) is not sees


def test_no_running_statistics_cross_the_wire():
    assert not list(RefineNet(1, 8, 4, 3).buffers())


def test_odd_images_are_refused():
    with pytest.raises(ConfigError, match="images of 27 pixels cannot be halved"):
        RefineNet(1, 27, 4, 0)
    with pytest.raises(DataError, match=r"images of shape \(3, 8, 8\) came to a RefineNet for 1 channels"):
        RefineNet(1, 8, 4, 0)(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
