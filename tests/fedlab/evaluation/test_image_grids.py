"""Pictures of generated images: what is where, and that they are PNG files."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from fedlab.evaluation import image_grids


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_tiles_stand_in_rows_with_a_margin_and_missing_ones_are_ground():
    x = torch.stack([torch.full((1, 2, 2), value) for value in (-1.0, 0.0, 1.0)])
    found = image_grids.tile_images(x, 2)
    assert found.shape == (8, 8, 3)
    assert (found[1:3, 1:3] == 0).all()
    assert (found[1:3, 5:7] == 128).all()
    assert (found[5:7, 1:3] == 255).all()
    assert (found[5:7, 5:7] == image_grids.BACKGROUND).all()
    assert (found[0] == image_grids.BACKGROUND).all()


def test_pictures_of_samples_and_labels_can_be_drawn_without_some_labels():
    drawn, labels = torch.rand(20, 1, 6, 6) * 2 - 1, torch.arange(20) % 3
    mixtures = {f"client-{number}": np.array([4.0, 0.0, number, 2.0]) for number in range(10)}
    for png in (image_grids.label_plot(drawn, labels, mixtures), image_grids.generated_and_real(drawn, drawn[:3], 2)):
        assert min(opened(png).shape[:2]) > 300
