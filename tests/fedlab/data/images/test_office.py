"""Histograms of Office-Caltech10: by hand."""

from __future__ import annotations

import torch

from fedlab.data.images.office import drop_keypoints, hellinger, to_hellinger
from fedlab.seeds import seeded


def test_counts_become_roots_of_shares():
    counts = torch.tensor([[1, 0, 3, 0], [2, 2, 2, 2], [0, 0, 0, 0]], dtype=torch.uint8)
    expected = torch.tensor([[1.0, 0, 3**0.5, 0], [1, 1, 1, 1], [0, 0, 0, 0]])  # sqrt(4 * 1/4), sqrt(4 * 3/4)
    torch.testing.assert_close(to_hellinger({"x": counts})["x"], expected)
    torch.testing.assert_close(hellinger(10 * counts.float()), expected)  # how much was found is no part of it


def test_a_view_keeps_some_of_the_key_points_and_invents_none():
    counts = torch.randint(0, 5, (200, 50), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    batch = {"x": counts, "y": torch.arange(200)}
    with seeded("view"):
        first = drop_keypoints(batch)
    with seeded("view"):
        assert torch.equal(drop_keypoints(batch)["x"], first["x"])
    assert (first["x"][counts == 0] == 0).all()
    assert 0.05 < float((first["x"][counts > 0] == 0).float().mean()) < 0.5
    torch.testing.assert_close(first["x"].square().sum(1), torch.full((200,), 50.0))
    assert torch.equal(first["y"], batch["y"])
