"""Random views: ranges, variety, shares, and what stays where it is."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.digits.augment import random_affine, random_recolor
from fedlab.seeds import seeded


def digits(count=64):
    """A bright cross on the ground of -1, with gray edges."""
    x = torch.full((count, 3, 32, 32), -1.0)
    x[:, :, 8:24, 14:18] = 1.0
    x[:, :, 14:18, 8:24] = 1.0
    x[:, :, 7, 14:18] = 0.3
    return x


@pytest.mark.parametrize("view", [random_affine, random_recolor, lambda x: random_recolor(random_affine(x))])
def test_values_stay_in_range_and_shape(view):
    with seeded("view"):
        x = view(digits(200))
    assert x.shape == (200, 3, 32, 32)
    assert x.dtype == torch.float32
    assert x.min() >= -1 - 1e-6
    assert x.max() <= 1 + 1e-6


@pytest.mark.parametrize("view", [random_affine, random_recolor])
def test_a_view_is_a_function_of_the_random_stream_and_leaves_its_input(view):
    x = digits(8)
    with seeded("view"):
        first = view(x)
    with seeded("view"):
        again = view(x)
    with seeded("other"):
        other = view(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, digits(8))


STILL = {"degrees": 0, "shear": 0, "scale": (1, 1), "shift": 0}


@pytest.mark.parametrize("ranges", [{"degrees": 30}, {"shear": 0.4}, {"scale": (0.6, 1.2)}, {"shift": 0.3}])
def test_each_image_is_warped_in_its_own_way_in_every_respect(ranges):
    with seeded("view"):
        x = random_affine(digits(8), **{**STILL, **ranges})
    for first in range(8):
        for second in range(first):
            assert (x[first] - x[second]).abs().max() > 0.01


def test_no_ranges_no_warp():
    x = digits(4)
    assert torch.allclose(random_affine(x, **STILL), x, atol=1e-4)


def test_what_comes_in_from_outside_is_the_ground():
    with seeded("view"):
        x = random_affine(digits(50), scale=(0.5, 0.5), shift=0.0)
    corners = x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners, torch.full_like(corners, -1.0), atol=1e-6)
    assert x.amax((1, 2, 3)).min() > 0.9  # the strokes are still there


def test_a_half_scale_halves_lengths_and_a_shift_moves_by_half_widths():
    with seeded("view"):
        small = random_affine(digits(1), **{**STILL, "scale": (0.5, 0.5)})
    ink = [float((x[0, 0] + 1).sum()) for x in (small, digits(1))]
    assert ink[0] == pytest.approx(ink[1] / 4, rel=0.05)
    with seeded("view"):
        moved = random_affine(digits(100), **{**STILL, "shift": 0.25})  # at most 4 of 32 pixels
    columns = ((moved[:, 0] + 1) / 2).sum(1)  # (images, 32)
    center = (columns * torch.arange(32.0)).sum(1) / columns.sum(1)
    assert 3 < (center - 15.5).abs().max() <= 4.01


def test_shares_of_plain_and_gray_images():
    x = digits(4000)[:, :, 10:18, 10:18]
    with seeded("view"):
        y = random_recolor(x, plain=0.35, gray=0.2)
    plain = (y == x).flatten(1).all(1)
    gray = (y == y[:, :1]).flatten(1).all(1) & ~plain
    assert plain.float().mean() == pytest.approx(0.35, abs=0.03)  # four standard deviations
    assert gray.float().mean() == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("plain", "gray", "share"), [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)])
def test_the_ends_of_the_shares(plain, gray, share):
    x = digits(50)
    with seeded("view"):
        y = random_recolor(x, plain, gray)
    assert (y == x).flatten(1).all(1).float().mean() == share
    assert ((y == y[:, :1]).flatten(1).all(1).float().mean() == 1.0) == (plain + gray == 1.0)


def test_colors_are_one_for_the_ground_and_one_for_the_stroke():
    with seeded("view"):
        y = random_recolor(digits(100), plain=0.0, gray=0.0)
    ground, stroke, edge = y[:, :, 0, 0], y[:, :, 16, 16], y[:, :, 7, 15]  # (images, 3)
    assert torch.equal(y[:, :, 31, 31], ground)
    assert torch.allclose(edge, ground * 0.35 + stroke * 0.65, atol=1e-6)  # the mask there is (0.3 + 1) / 2
    assert ((stroke.mean(1) < ground.mean(1)).float().mean() - 0.5).abs() < 0.2  # both polarities
    assert len(torch.unique(ground, dim=0)) == 100
