"""The loss of mixed images: that of mixed labels, and the usual one where nothing is mixed."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from fedlab.losses.mixed_labels import mixed_cross_entropy


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(8, 5, dtype=torch.double)


Y, OTHER = torch.arange(8) % 5, torch.arange(8) % 3
SHARE = torch.linspace(0, 1, 8, dtype=torch.double)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_the_cross_entropy_of_mixed_labels(logits, smoothing):
    soft = (1 - SHARE)[:, None] * one_hot(Y, 5) + SHARE[:, None] * one_hot(OTHER, 5)
    wanted = cross_entropy(logits, soft, label_smoothing=smoothing)
    torch.testing.assert_close(mixed_cross_entropy(logits, Y, OTHER, SHARE, smoothing), wanted)


def test_a_share_of_0_is_the_first_label_and_of_1_the_second(logits):
    for share, label in ((0.0, Y), (1.0, OTHER)):
        value = mixed_cross_entropy(logits, Y, OTHER, torch.full((8,), share))
        torch.testing.assert_close(value, cross_entropy(logits, label))
