"""EfficientNet-Lite0: its published size, its padding, and what its stages give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.models.backbones import BackboneClassifier, Standardize, fold_batch_norms, split_stages
from fedlab.models.efficientnet import NUM_STAGES, STAGES, WIDTH, SameConv, efficientnet_lite0, published_names
from fedlab.seeds import seeded

PUBLISHED = 4_694_073  # numbers in the published file, counters and the classifier's included
CLASSIFIER = 1280 * 1000 + 1000


@pytest.fixture(scope="module")
def network():
    with seeded("network"):
        return efficientnet_lite0().eval()


def test_it_has_the_published_arrays(network):
    state, names = network.state_dict(), published_names()
    assert state.keys() == names.keys()
    assert len(set(names.values())) == len(names) == 294
    assert sum(array.numel() for array in state.values()) == PUBLISHED - CLASSIFIER


@pytest.mark.parametrize("size", [64, 65, 96])
def test_any_size_gives_features(network, size):
    with torch.no_grad():
        assert network(torch.zeros(2, 3, size, size)).shape == (2, WIDTH)
    assert len(network) == NUM_STAGES == len(STAGES) + 2


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (5, 5, 1), (4, 1, 1)])
def test_padding_is_tensorflows_with_the_odd_pixel_behind(size, kernel, stride):
    conv = SameConv(1, 1, kernel, stride)
    nn.init.ones_(conv.weight)
    x = torch.arange(float(size * size)).view(1, 1, size, size)
    out = conv(x)
    assert out.shape[-1] == -(-size // stride)
    total = max((out.shape[-1] - 1) * stride + kernel - size, 0)
    before = total // 2
    rows = slice(0, max(kernel - before, 1))  # of the first window, what lies inside the image
    assert out[0, 0, 0, 0] == x[0, 0, rows, rows].sum()


def test_folding_changes_the_time_and_not_the_features(network):
    x = torch.randn(2, 3, 64, 64)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1), layer.running_var.uniform_(0.8, 1.2)
    with torch.no_grad():
        before = network(x)
        folded = fold_batch_norms(split_stages(network, 0)[0])
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
        torch.testing.assert_close(folded(x), before, atol=1e-4, rtol=1e-4)


def test_stages_are_split_into_frozen_and_trained_ones():
    layers = [nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 5)]
    frozen, rest = split_stages(layers, 1)
    assert list(frozen) == layers[:2] and rest == layers[2:]
    assert not frozen.training and not any(weight.requires_grad for weight in frozen.parameters())
    model = BackboneClassifier(rest, 5, 7)
    assert model(torch.randn(6, 4)).shape == (6, 7)
    assert set(model.state_dict()) >= {"features.0.weight", "features.1.running_mean", "head.weight"}
    narrow = BackboneClassifier([], 4, 7, bottleneck=2)
    assert narrow.features(torch.randn(6, 4)).shape == (6, 2) and narrow(torch.randn(6, 4)).shape == (6, 7)
    assert sum(weight.numel() for weight in narrow.features.parameters()) == 4 * 2 + 2 * 2  # the layer and its norm


def test_pixels_become_what_the_network_was_trained_on():
    layer = Standardize((127.0, 127.0, 127.0), (128.0, 64.0, 32.0))
    x = torch.tensor([0.0, 127.0, 255.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3) / 127.5 - 1
    wanted = torch.tensor([-127.0, 0.0, 128.0]) / torch.tensor([128.0, 64.0, 32.0])[:, None]
    torch.testing.assert_close(layer(x)[0, :, 0], wanted)
    assert not layer.state_dict()
