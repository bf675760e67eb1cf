"""Ranges and titles of the axes of a page's figures, and lines that are broken."""

from __future__ import annotations

import math
import re

import pytest

import many_clients
from fedlab.report.panels import Curve, Trace, bars, limits, panel, paths
from fedlab.report.run_page import render


def test_an_axis_holds_the_band_around_a_line():
    flat = Curve("median", 2, [0.5, 0.5, math.nan], band=([0.2, 0.3, math.nan], [0.6, 0.7, math.nan]))
    assert limits([[flat]], (0.0, 1.0)) == [pytest.approx((0.15, 0.75))]


def test_panels_have_one_span_within_the_bounds():
    wide, near_one = Curve("a", 2, [0.1, 0.5]), Curve("b", 2, [0.98])
    (low, high), (below, above) = limits([[wide], [near_one]], (0.0, 1.0))
    assert high - low == pytest.approx(above - below) == pytest.approx(0.48)
    assert above < 1.02


def test_means_that_each_lack_another_member_all_have_open_dots():
    curve = Curve("m", 2, [0.1, 0.2], members=[frozenset("ab"), frozenset("bc")])
    drawn = panel("p", range(2), [curve], within=(0, 1), percent=True, alt="").svg
    alike = panel("p", range(2), [Curve("m", 2, [0.1, 0.2])], within=(0, 1), percent=True, alt="").svg
    assert drawn.count("stroke-width: 1.2") > 0 == alike.count("stroke-width: 1.2")


def texts(plot, title):
    drawn = plot.under(title) if title else plot.svg
    return re.findall(r"<text[^>]*>([^<]*[a-z][^<]*)</text>", drawn)


def test_the_range_of_a_mean_that_lacks_a_member_is_not_drawn():
    both, one = frozenset("ab"), frozenset("a")

    def drawn(high, *members):
        band = [0.0, 0.1, 0.2, 0.3], [0.3, 0.4, high, 0.6]
        curve = Curve("m", 2, [0.1, 0.2, 0.6, 0.4], band=band, members=members)
        return panel("p", range(4), [curve], within=(0, 1), percent=True, alt="").svg

    assert drawn(0.9, both, both, both, both) == drawn(0.9) != drawn(0.7)
    assert drawn(0.9, both, both, one, both) == drawn(0.7, both, both, one, both)  # wherever its range ends


def test_a_title_of_an_axis_is_not_written_again_under_a_title_that_has_it():
    seconds = bars("s", [0, 1], [Curve("a", 2, [1.0, 2.0])], alt="", y="seconds")
    assert (texts(seconds, ""), texts(seconds, "Seconds in each round")) == (["round", "seconds"], [])
    assert texts(seconds, "Milliseconds of seconds_a") == ["round", "seconds"]  # as words, and no parts of them
    loss = panel("l", [0, 1], [Curve("a", 2, [1.0, 2.0])], within=(0, 3), percent=False, alt="", y="loss", unit="nats")
    assert (texts(loss, "mean"), texts(loss, "loss ↓, on the server")) == (["round", "loss in nats"], ["round", "nats"])
    cost = paths("c", [Trace("a", 2, [1.0], [0.5])], within=(0, 1), percent=True, alt="", x="MB of use", y="accuracy")
    assert texts(cost, "by MB of use, both ways") == ["accuracy"]


def test_no_title_of_an_axis_of_a_run_s_page_repeats_its_figure_s(tmp_path):
    page = render(many_clients.write_run(tmp_path, tested=50, global_test=True))
    figures = re.findall(r"<figcaption>([^<]*)</figcaption>\s*(<svg viewBox.*?</svg>)", page, re.DOTALL)
    assert len(figures) > 5
    for title, drawing in figures:
        for words in re.findall(r"<text[^>]*>([^<]*[a-z][^<]*)</text>", drawing):
            assert words.lower() not in title.lower()
