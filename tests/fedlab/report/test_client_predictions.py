"""Confusion matrices and example images of a run's page."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from fedlab.data.dataset import ArrayDataset
from fedlab.report import client_plots, client_predictions
from fedlab.report.client_predictions import predictions_of
from fedlab.report.example_images import choose_examples, example_images
from fedlab.report.run_page import render
from fedlab.runs.result import Result
from pages import Page


class Brightest(nn.Module):
    """Predicts the place of the brightest of four pixels."""

    def forward(self, x):
        return 9 * x.flatten(1)


@pytest.fixture
def data():
    """Twenty images of 2 by 2 pixels, of which every fourth has another label than its brightest pixel."""
    y = torch.arange(20) % 4
    return ArrayDataset(
        {
            "x": torch.eye(4)[y].view(20, 1, 2, 2) * (1 + torch.arange(20)).view(-1, 1, 1, 1) / 20,
            "y": torch.where(y == 3, 0, y),
        }
    )


def test_examples_are_right_ones_and_the_most_confident_mistakes(data):
    found = choose_examples(Brightest(), data)
    true, predicted = found["example_classes"].T
    assert found["example_images"].shape == (11, 2, 2, 3) and found["example_images"].dtype == np.uint8
    assert (true == predicted).tolist() == [True] * 6 + [False] * 5
    assert (np.diff(found["example_scores"][6:]) <= 0).all() and (predicted[6:] == 3).all()
    assert all(pixels.max() == 255 and pixels[pixels.max(-1) > 0].shape == (1, 3) for pixels in found["example_images"])


def test_large_images_are_made_small_and_others_are_no_images(data):
    large = ArrayDataset({"x": torch.rand(3, 3, 120, 240), "y": torch.zeros(3, dtype=torch.long)})
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert choose_examples(pooled, large)["example_images"].shape == (3, 48, 96, 3)
    assert choose_examples(Brightest(), ArrayDataset({"x": data[:]["x"]})) == {}
    assert choose_examples(Brightest(), ArrayDataset({"x": torch.rand(3, 4), "y": torch.zeros(3)})) == {}


def test_a_mistake_says_what_was_taken_for_what(data):
    images = example_images(*choose_examples(Brightest(), data).values(), ["zero", "one"])
    assert not images[0].wrong and images[0].title.startswith("zero, ")
    assert images[-1].wrong and images[-1].title.startswith("zero taken for 3, ")
    assert images[0].address.startswith("data:image/png;base64,")


@pytest.fixture
def result(comparison, tmp_path):
    cell = next(cell for cell in comparison.cells if cell.strategy == "dualadapt" and cell.seed == 0)
    kept = shutil.ignore_patterns(client_plots.FILE)
    return Result.read(shutil.copytree(comparison.path(cell), tmp_path / "run", ignore=kept))


def test_the_page_has_a_matrix_for_each_client_and_says_how_to_add_them(result):
    assert "fedlab report" in "".join(Page(render(result)).text)
    found = predictions_of(result)
    assert [client.name for client in found.clients] == ["near", "far"] and not found.hidden and not found.missing
    seen = Page(render(result, found))
    counts = np.array([row[1:] for row in seen.files["confusion-1.csv"][1:]], dtype=float)
    assert counts.sum() == 90 and "as confusion matrices" not in "".join(seen.text)
    right = 100 * np.trace(counts) / 90
    assert f"{right:.1f} % of its test labels right" in "".join(seen.text)


def test_of_many_clients_the_worst_ones_are_shown(result, monkeypatch):
    monkeypatch.setattr(client_predictions, "FEW", 1)
    monkeypatch.setattr(client_predictions, "MAX_OF_MANY", 1)
    found = predictions_of(result)
    means = {name: values["accuracy_average"] for name, values in result.rounds[-1]["clients"].items()}
    assert [client.name for client in found.clients] == [min(means, key=means.get)] and found.hidden == 1
    assert "These are the worst ones; 1 more client is not shown." in "".join(Page(render(result, found)).text)


def test_what_cannot_be_shown_is_said(result):
    shutil.rmtree(result.directory / "checkpoints")
    found = predictions_of(result)
    assert "has no checkpoint" in found.missing and "They are not shown" in "".join(Page(render(result, found)).text)
