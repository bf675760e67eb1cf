"""Pictures of molecules: sizes, captions, what is shown, and that every case draws."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fedlab.evaluation import molecule_plots
from fedlab.evaluation.molecule_plots import (
    COLUMNS,
    LINE,
    MARGIN,
    PANEL,
    ROWS,
    molecule_grid,
    property_histograms,
    sample_grid,
)

RINGS = ["C1CCCCC1", "c1ccccc1O", "C1CC1", "CCO"]


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def panel(image, number, columns=COLUMNS):
    top, left = MARGIN + LINE + 8 + number // columns * PANEL, MARGIN + number % columns * PANEL
    return image[top : top + PANEL, left : left + PANEL]


@pytest.fixture
def captions(monkeypatch):
    """What is written above grids."""
    found = []
    draw = ImageDraw.ImageDraw.text

    def text(self, at, words, *how):
        found.append(words)
        return draw(self, at, words, *how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def test_a_grid_has_a_panel_for_each_molecule_and_colors_for_its_elements():
    image = pixels(molecule_grid([*RINGS, "", "CN"], "six", columns=3))
    assert image.shape == (2 * PANEL + 2 * MARGIN + LINE + 8, 3 * PANEL + 2 * MARGIN, 3)
    assert (panel(image, 4, 3) == 255).all()
    red = [(panel(image, number, 3) @ [1, -1, 0] > 150).any() for number in range(6)]  # oxygen
    assert red == [False, True, False, True, False, False]
    assert (image[: MARGIN + LINE] < 128).any()  # the caption
    assert molecule_grid(RINGS, "x", ["a", "b", "c", "d"]) != molecule_grid(RINGS, "x")


def test_samples_show_different_molecules_and_tell_how_many_there_are(captions):
    image = pixels(sample_grid([None, "CCO", "CCO", "CCN", None]))
    assert captions == ["3 of 5 generated graphs are molecules, 2 different ones"]
    assert (panel(image, 1) < 255).any() and (image.shape[0] - 2 * MARGIN - LINE - 8) // PANEL == 1
    sample_grid([None, None])
    many = ["C" * (1 + n % 30) for n in range(60)]
    assert (pixels(sample_grid(many)).shape[0] - 2 * MARGIN - LINE - 8) // PANEL == ROWS
    assert captions[1:] == [
        "none of 2 generated graphs is a molecule",
        "60 of 60 generated graphs are molecules, 30 different ones; the first 24",
    ]


def test_the_same_molecules_make_the_same_bytes():
    assert sample_grid(RINGS) == sample_grid(RINGS)


def test_histograms_draw_the_reference_in_gray_and_samples_in_blue():
    alone, both = pixels(property_histograms([], RINGS)), pixels(property_histograms(["CCCO", "C1CCC1"], RINGS))
    blue = tuple(int(molecule_plots.GENERATED[at : at + 2], 16) for at in (1, 3, 5))

    def drawn(image):
        return (np.abs(image - blue).sum(2) < 12).sum()

    assert alone.shape == both.shape and drawn(both) > 2 * drawn(alone) > 0  # nothing drawn is a line at 0
    assert ((alone.max(2) - alone.min(2) < 12) & (alone[..., 0] > 150) & (alone[..., 0] < 240)).sum() > 1000
