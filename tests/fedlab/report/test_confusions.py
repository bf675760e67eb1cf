"""Confusions: counts by hand, and what makes them worth showing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedlab.comparison.client_panels import draw
from fedlab.comparison.page_tables import SeriesStyle
from fedlab.data.dataset import ArrayDataset
from fedlab.registry import find
from fedlab.report.client_plots import ARRAYS, ClientPlotData
from fedlab.report.confusions import agrees, confusion
from fedlab.runs.metrics import MetricTable

TABLE = MetricTable.declared(
    find("strategy", "dualadapt").spec, find("workload", "digits").spec, find("workload", "camvid").spec
)


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({"accuracy": 0.7}, True),
        ({"accuracy_average": 0.702, "loss": 1.0}, True),
        ({"accuracy": 0.6}, False),
        ({"miou_global": (4 / 7 + 3 / 6) / 2}, True),
        ({"miou": 0.7}, False),
        ({"loss": 0.7}, False),
        ({}, False),
    ],
)
def test_confusions_must_agree_with_a_reported_share(reported, expected):
    assert agrees(np.array([[4, 2], [1, 3]]), reported, TABLE) == expected


def test_a_panel_names_classes_and_what_its_workload_is_judged_by():
    counts = np.array([[4, 2], [1, 3]])
    nothing = dict.fromkeys(ARRAYS, np.zeros((0, 2)))
    view, line = ClientPlotData("usps", **{**nothing, "confusion": counts}), SeriesStyle(("a",), "a", 2, ())
    plain = draw(view, line, (), TABLE.find("accuracy"))
    street = draw(view, line, ("sky", "road"), TABLE.find("miou"))
    assert (plain.right, [row.head for row in plain.confusion]) == ("70.0 % of its test labels right", ["0", "1"])
    assert street.right == "mean IoU 53.6 %, 70.0 % of its test labels right"
    assert (street.heads, [row.head for row in street.confusion]) == (["0", "1"], ["0 sky", "1 road"])


def test_labels_of_other_classes_make_no_confusions():
    model = nn.Linear(4, 3)
    assert not len(confusion(model, ArrayDataset({"x": torch.zeros(5, 4)})))
    assert not len(confusion(model, ArrayDataset({"x": torch.zeros(5, 4), "y": torch.zeros(5, 2).long()})))
    void = ArrayDataset({"x": torch.zeros(5, 4), "y": torch.tensor([0, 1, 255, -1, 2])})
    assert confusion(model, void).sum() == 3


class _Pixels(nn.Module):
    """A row of scores for each cell of two by two pixels: the class is the cell's first value."""

    def forward(self, x):
        return 9.0 * nn.functional.one_hot(x[:, 0, ::2, ::2].flatten().long(), 3).float()


def test_rows_of_cells_are_compared_pixel_by_pixel():
    cells = torch.tensor([[[0, 0, 1, 1], [2, 2, 1, 1]]]).repeat(3, 1, 1)  # (batch, h, w)
    y = cells.repeat_interleave(2, 1).repeat_interleave(2, 2)
    x = y[:, None].float()
    y[:, :, 0] = 255  # of no class
    counts = confusion(_Pixels(), ArrayDataset({"x": x, "y": y}))
    assert counts.sum() == 3 * (4 * 8 - 4)
    assert np.trace(counts) / counts.sum() > 0.7 and counts[1, 1] == 3 * 16


def test_a_class_that_no_pixel_has_does_not_count():
    assert agrees(np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]]), {"miou": (3 / 4 + 1) / 2}, TABLE)
