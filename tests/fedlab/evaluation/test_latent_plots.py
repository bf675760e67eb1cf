"""Pictures of latent spaces: their parts are there, whatever is missing in the figures."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from fedlab.evaluation import latent_plots
from fedlab.evaluation.molecule_plots import LINE, MARGIN, PANEL


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count(image, color):
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return int((np.abs(image - wanted).sum(2) < 12).sum())


def test_a_path_has_a_row_for_each_pair_and_an_empty_place_where_nothing_decodes():
    image = pixels(
        latent_plots.interpolation_plot([("CCO", "CCN"), ("C", "N")], [["CCO", None, "CCN"], ["C", "C", "N"]], "x")
    )
    assert image.shape == (2 * PANEL + 2 * MARGIN + LINE + 8, 5 * PANEL + 2 * MARGIN, 3)
    top = MARGIN + LINE + 8
    places = [image[top : top + PANEL // 2 + 30, MARGIN + n * PANEL : MARGIN + (n + 1) * PANEL] for n in range(5)]
    colored = [bool((place.max(2) - place.min(2) > 100).any()) for place in places]
    assert colored == [True, True, False, True, True] and (places[2] < 200).any()  # there, words alone


def test_a_direction_is_drawn_also_where_walks_leave_the_molecules():
    generator = np.random.default_rng(0)
    true = generator.normal(size=50)
    steps, values = np.linspace(-3, 3, 7), np.full((8, 7), np.nan)
    values[:, 2:5] = generator.normal(size=(8, 3))
    met = [None, "C", "CC", "CCC", None, None, "C"]
    whole = pixels(latent_plots.direction_plot("logp", true, true * 0.9, "0.9", steps, values, 3, met))
    none = pixels(latent_plots.direction_plot("qed", true, true, "1", steps, values * np.nan, 0, [None] * 7))
    bluish = [(image[..., 2] - image[..., 0] > 20).sum() for image in (whole, none)]
    assert bluish[0] > 1.5 * bluish[1] > 0
    assert count(whole, latent_plots.GREEN) > 0 and whole.shape[1] == none.shape[1]


def test_curves_by_an_option_have_a_panel_for_each_run_and_the_published_values_as_lines():
    scores = {"validity": np.array([[0.2, 0.4, 0.9], [0.3, 0.5, 1.0]]), "novelty": np.ones((2, 3))}
    marks = {"novelty": np.array(0.5)}
    one = pixels(latent_plots.sweep_plot({"a": scores}, [0.1, 0.5, 1.0], "temperature", {}))
    two = pixels(latent_plots.sweep_plot({"a": scores, "b": scores}, [0.1, 0.5, 1.0], "temperature", {}))
    marked = pixels(latent_plots.sweep_plot({"a": scores, "b": scores}, [0.1, 0.5, 1.0], "temperature", marks))
    assert two.shape[1] > 1.5 * one.shape[1]
    assert count(two, latent_plots.GENERATED) > 1.5 * count(one, latent_plots.GENERATED) > 0
    reddish = [(image[..., 0] - image[..., 2] > 20).sum() for image in (marked, two)]
    assert reddish[0] > reddish[1] > 0
