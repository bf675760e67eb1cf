"""The network on histograms: shapes, and that its first layer is a z-score with a floor."""

from __future__ import annotations

import torch

from fedlab.models.histogram_mlp import VARIANCE_FLOOR, HistogramNet


def test_shapes_and_the_number_of_parameters():
    model = HistogramNet(10, 800)
    assert model.features(torch.rand(4, 800)).shape == (4, 64)
    assert model(torch.rand(4, 800)).shape == (4, 10)
    assert sum(p.numel() for p in model.parameters()) == 800 * 256 + 2 * 256 + 256 * 64 + 2 * 64 + 65 * 10


def test_the_first_layer_is_a_z_score_without_weights():
    layer = HistogramNet(3, 5).features[0]
    x = torch.rand(20, 5) * torch.tensor([1.0, 2, 3, 4, 0])
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + VARIANCE_FLOOR).sqrt()
    torch.testing.assert_close(layer.train()(x), expected)
    assert not list(layer.parameters())
