"""Cells of an image and their pixels, by hand."""

from __future__ import annotations

import pytest
import torch

from fedlab.report.pixel_rows import grid, labels_of_rows, probabilities


@pytest.mark.parametrize(("rows", "cells"), [(2 * 6 * 8, (6, 8)), (2 * 3 * 4, (3, 4)), (2 * 5, None), (7, None)])
def test_cells_of_images_of_six_by_eight(rows, cells):
    assert grid(rows, torch.zeros(2, 6, 8)) == cells


def test_labels_of_examples_are_their_own():
    assert grid(4, torch.zeros(4)) is None
    assert labels_of_rows(4, torch.arange(4)).tolist() == [0, 1, 2, 3]
    assert labels_of_rows(3, torch.arange(4)) is None


def test_a_cell_has_the_label_of_its_middle():
    y = torch.arange(16).view(1, 4, 4)
    assert labels_of_rows(4, y).tolist() == [5, 7, 13, 15]


def test_scores_become_probabilities_of_the_labels_shape():
    assert probabilities(torch.zeros(2, 4), torch.zeros(2)).tolist() == [[0.25] * 4] * 2
    maps = probabilities(torch.zeros(2 * 3 * 4, 5), torch.zeros(2, 6, 8))
    assert maps.shape == (2, 5, 6, 8) and maps.sum(1).allclose(torch.ones(2, 6, 8))
    assert probabilities(torch.zeros(2, 3, 6, 8), torch.zeros(2, 6, 8)).shape == (2, 3, 6, 8)
    assert probabilities(torch.zeros(9, 5), torch.zeros(2, 6, 8)) is None
    assert probabilities(torch.zeros(9), torch.zeros(9)) is None
