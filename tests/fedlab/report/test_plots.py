"""Pictures as text: where things stand, worked out by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fedlab.report import plots


def numbers(pattern, drawing):
    return [tuple(map(float, found)) for found in re.findall(pattern, drawing)]


def test_points_stand_in_the_corners_of_their_box():
    square = np.array([[0.0, 0.0], [2.0, 4.0]])
    drawing = plots.domains(square, square[:0], (square[0], square[1]), "words & <more>")
    assert numbers(r"M(\d+) (\d+)h", drawing) == [(14, 426), (586, 14)]
    assert 'aria-label="words &amp; &lt;more&gt;"' in drawing


def test_a_box_leaves_stragglers_outside_and_is_never_flat():
    cloud = np.zeros((1000, 2))
    cloud[0] = 1e6
    low, high = plots.bounds(cloud)
    assert low.tolist() == [0, 0] and high.tolist() == [1, 1]
    assert [corner.tolist() for corner in plots.bounds(cloud[:0])] == [[0, 0], [1, 1]]


def test_a_class_is_a_letter_at_its_point():
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    drawing = plots.classes([(points, np.array([0, 9, 10]), 2)], (points[0], points[1]), "")
    assert ">09A</text>" in drawing and 'x="8 580 294"' in drawing
    assert plots.has_glyphs(np.array([0, 35])) and not plots.has_glyphs(np.array([36]))
    assert not plots.has_glyphs(np.zeros((0, 2)))


def test_a_histogram_shows_shares_not_counts():
    few, many = (
        plots.histogram(np.array([1, 3]), np.array([2, 2]), ""),
        plots.histogram(np.array([10, 30]), np.array([1, 1]), ""),
    )
    assert few == many
    heights = [float(height) for height in re.findall(r"v-(\d+\.\d)h", few)]
    assert heights == pytest.approx([230 / 3, 230], abs=0.1)


def test_intervals_share_a_scale_with_zero_on_it():
    low, high = plots.axis_range([0.02, 0.1, float("nan")])
    assert (low, high) == pytest.approx((-0.006, 0.106))
    drawing = plots.forest_plot(0.05, 0.0, 0.1, (-0.1, 0.1), "")
    assert "M120.0 0V22" in drawing and "M120.0 11H240.0" in drawing and 'cx="180.0"' in drawing
    assert "11H" not in plots.forest_plot(0.05, float("nan"), float("nan"), (-0.1, 0.1), "")
    assert plots.axis_range([]) == (-1.0, 1.0)


def test_shares_fill_the_bar_in_the_order_of_names():
    drawing = plots.label_bar({"b": 3, "a": 1}, {"a": "a", "b": "b", "c": "c"}, "")
    assert numbers(r'<rect x="([\d.]+)" y="1" width="([\d.]+)"', drawing) == [(0, 100), (100, 300)]
    assert re.findall(r">(\w)</text>", drawing) == ["a", "b"]
    assert "<script>" not in plots.label_bar({"<script>": 1}, {"<script>": "<script>"}, "<script>")
    assert "<rect" not in plots.label_bar({}, {"a": "a"}, "")
