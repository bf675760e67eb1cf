"""Views of scenes: labels go where their pixels go, light changes no label and no place."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from fedlab.data.segmentation.augment import random_gamma, random_resized_crop
from fedlab.seeds import seeded


def squares(count=16, height=60, width=80):
    """Scenes of two gray halves, and which half a pixel is of; the border is where the two must agree."""
    y = torch.zeros(count, height, width, dtype=torch.int64)
    y[:, :, width // 3 :] = 7
    y[:, : height // 4] = -100
    return (y.float() / 100).unsqueeze(1).expand(-1, 3, -1, -1).contiguous(), y


def test_labels_move_with_their_pixels():
    x, y = squares()
    with seeded("zoom"):
        images, labels = random_resized_crop(x, y)
    assert images.shape == x.shape and labels.shape == y.shape and labels.dtype == torch.int64
    assert set(labels.unique().tolist()) <= {-100, 0, 7}
    apart = (images[:, 0] - labels.float() / 100).abs() > 1e-3
    assert apart.float().mean() < 0.05  # bilinear at the borders, nearest elsewhere
    assert not torch.equal(labels, y)


def test_a_window_of_the_whole_scene_only_mirrors():
    x, y = squares()
    x = x + torch.linspace(-0.1, 0.1, 80)
    with seeded("mirror"):
        images, labels = random_resized_crop(x, y, min_scale=1.0)
    mirrored = [bool((image - plain).abs().max() > 1e-4) for image, plain in zip(images, x, strict=True)]
    assert 0 < sum(mirrored) < len(mirrored)
    for flipped, image, plain, after, before in zip(mirrored, images, x, labels, y, strict=True):
        assert_close(image, plain.flip(-1) if flipped else plain, rtol=0, atol=1e-4)
        assert torch.equal(after, before.flip(-1) if flipped else before)


def test_light_is_a_power_and_factors():
    x = torch.full((500, 3, 2, 2), 0.0)  # half way between black and white
    assert_close(random_gamma(x, gamma=1.0, gain=0.0, tint=0.0), x)
    with seeded("light"):
        bent = (random_gamma(x, gamma=2.0, gain=0.0, tint=0.0) + 1) / 2
    exponents = torch.log(bent[:, 0, 0, 0]) / math.log(0.5)
    assert exponents.min() == pytest.approx(0.5, abs=0.02) and exponents.max() == pytest.approx(2, abs=0.05)
    assert torch.equal(bent[:, 0], bent[:, 2])
    with seeded("light"):
        tinted = random_gamma(x, gamma=1.0, gain=0.0, tint=0.3)
    assert not torch.equal(tinted[:, 0], tinted[:, 2]) and tinted.min() >= -1 and tinted.max() <= 1


def test_views_are_functions_of_the_random_stream():
    x, y = squares(4)
    with seeded("a"):
        first = random_gamma(random_resized_crop(x, y)[0])
    with seeded("a"):
        again = random_gamma(random_resized_crop(x, y)[0])
    assert torch.equal(first, again) and not torch.equal(first, random_gamma(random_resized_crop(x, y)[0]))
