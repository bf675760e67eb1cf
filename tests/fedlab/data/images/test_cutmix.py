"""CutMix: what is pasted is a rectangle of the image before, its share is its area, and the law is torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from fedlab.data.images.cutmix import PASTED_LABEL, PASTED_SHARE, cutmix

COUNT, SIZE = 60, 16


@pytest.fixture
def batch():
    """Images of one color each, so that a pixel says which image it is of."""
    torch.manual_seed(0)
    numbers = torch.arange(COUNT, dtype=torch.float32)
    return {"x": numbers[:, None, None, None].expand(-1, 3, SIZE, SIZE).clone(), "y": torch.arange(COUNT) % 7}


def test_a_rectangle_of_the_image_before_is_pasted_and_its_share_is_its_area(batch):
    mixed = cutmix(batch, 1.0)
    pasted = mixed["x"] != batch["x"]
    assert torch.equal(mixed["x"][pasted], batch["x"].roll(1, 0)[pasted])
    inside = pasted[:, 0]
    assert torch.equal(pasted, inside[:, None].expand_as(pasted))
    rectangle = inside.any(2)[:, :, None] & inside.any(1)[:, None]
    assert torch.equal(inside, rectangle) and inside.any((1, 2)).sum() > COUNT / 2
    torch.testing.assert_close(mixed[PASTED_SHARE], inside.float().mean((1, 2)))
    assert torch.equal(mixed[PASTED_LABEL], batch["y"].roll(1)) and torch.equal(mixed["y"], batch["y"])


def test_probability_0_mixes_nothing_and_one_half_about_half(batch):
    untouched = cutmix(batch, 0.0)
    assert torch.equal(untouched["x"], batch["x"]) and not untouched[PASTED_SHARE].any()
    share = torch.stack([cutmix(batch, 0.5)[PASTED_SHARE] for _ in range(40)])
    always = torch.stack([cutmix(batch, 1.0)[PASTED_SHARE] for _ in range(40)])
    assert float((share > 0).float().mean()) == pytest.approx(float((always > 0).float().mean()) / 2, abs=0.04)


def test_shares_follow_the_law_of_torchvision():
    torch.manual_seed(1)
    ours = cutmix({"x": torch.zeros(4000, 1, 32, 32), "y": torch.zeros(4000, dtype=torch.long)}, 1.0)[PASTED_SHARE]
    theirs = v2.CutMix(num_classes=2)
    image = torch.zeros(2, 1, 32, 32)
    drawn = torch.tensor([1 - theirs.make_params([image])["lam_adjusted"] for _ in range(4000)])
    torch.testing.assert_close(ours.mean(), drawn.mean(), atol=0.02, rtol=0)
    torch.testing.assert_close(ours.std(), drawn.std(), atol=0.02, rtol=0)


def test_the_same_stream_mixes_alike_and_one_image_stays(batch):
    torch.manual_seed(3)
    first = cutmix(batch, 0.5)
    torch.manual_seed(3)
    again = cutmix(batch, 0.5)
    assert all(torch.equal(first[name], again[name]) for name in first)
    alone = {name: column[:1] for name, column in batch.items()}
    assert torch.equal(cutmix(alone, 1.0)["x"], alone["x"])
