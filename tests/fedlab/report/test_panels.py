"""Ranges of the axes of a page's figures."""

from __future__ import annotations

import math

import pytest

from fedlab.report.panels import Curve, limits


def test_an_axis_holds_the_band_around_a_line():
    flat = Curve("median", 2, [0.5, 0.5, math.nan], band=([0.2, 0.3, math.nan], [0.6, 0.7, math.nan]))
    assert limits([[flat]], (0.0, 1.0)) == [pytest.approx((0.15, 0.75))]


def test_panels_have_one_span_within_the_bounds():
    wide, near_one = Curve("a", 2, [0.1, 0.5]), Curve("b", 2, [0.98])
    (low, high), (below, above) = limits([[wide], [near_one]], (0.0, 1.0))
    assert high - low == pytest.approx(above - below) == pytest.approx(0.48)
    assert above < 1.02
