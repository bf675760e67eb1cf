"""Batched views, image by image against torchvision's v2 functions with the same parameters."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from fedlab.data.images import views
from fedlab.data.images.views import Boxes

COUNT, SIZE = 12, 20
CROP = v2.RandomResizedCrop(32)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.rand(COUNT, 3, SIZE, SIZE) * 2 - 1


def test_crops_are_those_of_torchvision(x):
    boxes = views.sample_boxes(COUNT, SIZE, 0.08)
    for image, out, top, left, height, width in zip(x, views.crop(x, boxes), *boxes, strict=True):
        wanted = functional.resized_crop(image, int(top), int(left), int(height), int(width), [SIZE, SIZE])
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=0)


def test_the_whole_image_is_a_crop_that_changes_nothing(x):
    whole = Boxes(*(torch.full((COUNT,), float(value)) for value in (0, 0, SIZE, SIZE)))
    torch.testing.assert_close(views.crop(x, whole), x, atol=1e-5, rtol=0)


def test_boxes_lie_inside_and_follow_the_law_of_torchvision():
    torch.manual_seed(1)
    boxes = views.sample_boxes(4000, 32, 0.08)
    assert (boxes.top >= 0).all() and (boxes.left >= 0).all()
    assert (boxes.top + boxes.height <= 32).all() and (boxes.left + boxes.width <= 32).all()
    theirs = torch.tensor([list(CROP.make_params([torch.zeros(3, 32, 32)]).values()) for _ in range(4000)]).float()
    ours = torch.stack(list(boxes), 1)
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=0.5, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (views.adjust_brightness, functional.adjust_brightness),
        (views.adjust_contrast, functional.adjust_contrast),
        (views.adjust_saturation, functional.adjust_saturation),
    ],
)
def test_changes_of_color_are_those_of_torchvision(x, ours, theirs):
    shown = (x + 1) / 2
    factors = torch.empty(COUNT, 1, 1, 1).uniform_(0.4, 1.6)
    for image, out, factor in zip(shown, ours(shown, factors), factors, strict=True):
        torch.testing.assert_close(out, theirs(image, float(factor)), atol=1e-5, rtol=0)


def test_every_image_gets_parameters_of_its_own(x):
    same = x[:1].expand(COUNT, -1, -1, -1)
    torch.manual_seed(2)
    out = views.random_view(same, 0.3, 0.4, True)
    assert len({tuple(image.flatten().tolist()) for image in out}) == COUNT
    assert out.min() >= -1 - 1e-5 and out.max() <= 1 + 1e-5


def test_a_padded_crop_is_a_square_of_the_image_with_a_black_border(x):
    torch.manual_seed(6)
    moved = views.padded_crop(x, 3)
    torch.manual_seed(6)
    top, left = torch.randint(7, (2, COUNT))
    for image, out, row, column in zip(x, moved, top.tolist(), left.tolist(), strict=True):
        bordered = functional.pad(image, [3], fill=-1.0)
        assert torch.equal(out, functional.crop(bordered, row, column, SIZE, SIZE))
    assert len(set(zip(top.tolist(), left.tolist(), strict=True))) > COUNT / 2


def test_a_flip_is_a_mirror(x):
    mirrored = torch.arange(COUNT) % 2 == 0
    out = views.flip(x, mirrored)
    assert torch.equal(out[0], functional.horizontal_flip(x[0])) and torch.equal(out[1], x[1])


def test_nothing_asked_for_is_nothing_done(x):
    assert torch.equal(views.random_view(x, 1.0, 0.0, False), x)


def test_the_same_stream_gives_the_same_view(x):
    torch.manual_seed(5)
    first = views.random_view(x, 0.3, 0.4, True)
    torch.manual_seed(5)
    assert torch.equal(views.random_view(x, 0.3, 0.4, True), first)
