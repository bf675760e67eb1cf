"""Figures as PDF files: names, letters that can be read, and the critical-difference diagram."""

from __future__ import annotations

import re
import zlib

import pytest

from fedlab.comparison import files
from fedlab.report.charts import Drawing
from fedlab.report.panels import Curve, panel
from fedlab.report.pdf import write_figures
from fedlab.report.rank_diagram import rank_diagram


def drawing(*labels: str) -> Drawing:
    curves = [Curve(label, slot, [0.1, 0.2]) for slot, label in enumerate(labels, 2)]
    return Drawing("t", panel("p", [0, 1], curves, within=(0, 1), percent=True, alt="", y="cost@5 in $ of $x"))


def shapes(pdf: bytes) -> int:
    """Number of letters that the streams of a PDF show."""
    streams = re.findall(rb"stream\n(.*?)\nendstream", pdf, re.DOTALL)
    pages = [zlib.decompress(stream) for stream in streams if stream[:1] == b"x"]
    return sum(len(page) for page in pages if (b"BT" in page and b"Tj" in page) or b"TJ" in page)


def test_names_are_words_and_equal_input_gives_equal_bytes(tmp_path):
    named = [
        ("Accuracy: mean over clients", drawing("a")),
        ("accuracy, mean OVER clients", drawing("b")),
        ("%", drawing("c")),
    ]
    paths = write_figures(tmp_path / "figures", named)
    names = ["accuracy-mean-over-clients.pdf", "accuracy-mean-over-clients-2.pdf", "figure.pdf"]
    assert [path.name for path in paths] == names
    assert all(path.read_bytes().startswith(b"%PDF") for path in paths)
    assert paths[0].read_bytes() == drawing("a").picture.pdf()


def test_several_series_have_a_legend_since_the_figure_stands_alone():
    alone, two = drawing("a").picture, drawing("a", "b").picture
    assert [entry.label for entry in two.legend] == ["a", "b"]
    height = [float(re.search(rb"/MediaBox \[ *0 0 [\d.]+ ([\d.]+)", plot.pdf())[1]) for plot in (alone, two)]
    assert height[1] > height[0] and shapes(two.pdf()) > shapes(alone.pdf())
    drawing("a", r"$\nothing$").picture.pdf()  # a name is no formula: this one would be refused


def test_axes_have_titles_and_a_dollar_is_no_formula():
    svg = drawing("a").svg
    assert ">round<" in svg and "cost@5 in $ of $x" in svg


def test_the_rank_diagram_has_the_best_on_the_left_and_a_bar_for_each_group():
    names, ranks = ("a@$", "b<", "c"), (2.5, 1.0, 2.0)
    with_bar, without = (rank_diagram(names, ranks, groups, 0.7, (1, 2, 3), "words") for groups in ([(2, 0)], []))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", with_bar.svg)
    assert texts[:3] == ["1", "2", "3"] and texts[-3:] == ["b&lt;", "c", "a@$"]
    assert with_bar.svg.count("stroke-width: 3.2") == 1 and "stroke-width: 3.2" not in without.svg
    assert 'aria-label="words"' in with_bar.svg and with_bar.pdf().startswith(b"%PDF")


def test_a_comparison_has_its_curves_and_costs_in_figures(comparison, tmp_path):
    import dataclasses

    cells = [dataclasses.replace(cell, run=str(comparison.directory / cell.run)) for cell in comparison.cells]
    paths = files.write_figures(dataclasses.replace(comparison, directory=tmp_path, cells=cells))
    assert {"accuracy-mean-over-clients.pdf", "accuracy-near.pdf"} < {path.name for path in paths}
    assert len(paths) == 3 + 2  # two variants are too few for ranks


@pytest.mark.parametrize("many", [3, 12])
def test_long_names_stay_on_the_page(many):
    names = [f"strategy_with_a_long_name_{i}" for i in range(many)]
    plot = rank_diagram(names, [1 + i * 0.9 for i in range(many)], [], 1.0, [2] * many, "words")
    across = [float(x) for x in re.findall(r'<text[^>]* x="([\d.-]+)"', plot.svg)]
    assert all(0 <= x <= plot.size[0] for x in across)
