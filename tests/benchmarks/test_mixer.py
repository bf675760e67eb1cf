"""The images that a network is tested on: some of each class, and the same for all trainings."""

from __future__ import annotations

import pytest
import torch

from benchmarks import mixer
from fedlab.data.images.image_sets import LabeledImages

CLASSES, OF_EACH = 10, 40


@pytest.fixture
def sorted_set(monkeypatch):
    """A set that is sorted by class, in which a test takes 100 of 400 images."""
    y = torch.arange(CLASSES).repeat_interleave(OF_EACH)
    images = LabeledImages(torch.arange(len(y), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32), y)
    monkeypatch.setattr(mixer, "images_of", lambda name, split: images)
    monkeypatch.setattr(mixer, "TESTED", 100)
    return images


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sorted_set_is_tested_on_all_classes_and_every_training_on_the_same_images(
    sorted_set, monkeypatch, tmp_path, seed
):
    seen = []

    def spy(model, data):
        seen.append(data.columns["y"])
        return {"accuracy": 0.5}

    monkeypatch.setattr(mixer, "accuracy_and_loss", spy)
    job = mixer.Job("sorted", "ConvNet", 1e-3, 1, seed, images=20, batch=4)
    assert mixer.run(job, tmp_path, 1)["accuracy"] == 50.0
    (labels,) = seen
    assert len(labels) == 100 and len(labels.unique()) == CLASSES
    assert torch.equal(labels, mixer.drawn(sorted_set, 100, "test images").y)


def test_a_small_set_is_left_as_it_is(sorted_set):
    assert mixer.drawn(sorted_set, 400, "test images") is sorted_set
