"""Views of PACS."""

from __future__ import annotations

import torch

from fedlab.data.images.domain_suites import load_domain
from fedlab.data.images.pacs import PACS, augment
from fedlab.data.images.views import GRAY_FRACTION
from fedlab.seeds import seeded


def test_views_stay_in_range_follow_the_stream_and_some_lose_their_color():
    images = load_domain(PACS, "photo", "train", with_labels=True).select(slice(300))
    batch = images.columns
    with seeded("view"):
        first = augment(batch)
    with seeded("view"):
        assert torch.equal(augment(batch)["x"], first["x"])
    assert first["x"].shape == (300, 3, 32, 32) and first["x"].abs().max() <= 1 + 1e-5
    assert torch.equal(first["y"], batch["y"])
    gray = (first["x"][:, 0] - first["x"][:, 1]).abs().amax((1, 2)) < 1e-5
    before = (images[:]["x"][:, 0] - images[:]["x"][:, 1]).abs().amax((1, 2)) < 1e-5
    assert abs(float(gray[~before].float().mean()) - GRAY_FRACTION) < 0.08
    assert not torch.equal(first["x"], images[:]["x"])
