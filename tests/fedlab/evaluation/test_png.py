"""Figures as files: white, as large as asked for, the same bytes twice."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fedlab.evaluation import png


def test_a_figure_is_a_white_png_of_its_size():
    files = []
    for _ in range(2):
        figure = png.new_figure(2.0, 1.0)
        figure.add_axes((0.2, 0.3, 0.6, 0.5)).plot([0, 1])
        files.append(png.to_png(figure))
    assert files[0] == files[1]
    pixels = np.asarray(Image.open(io.BytesIO(files[0])))
    assert pixels.shape == (png.DPI, 2 * png.DPI, 3)
    assert (pixels[0] == 255).all() and (pixels < 255).any()


def test_an_image_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.optimize_png(Image.fromarray(pixels))))), pixels)
