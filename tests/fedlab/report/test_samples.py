"""Pictures that a model drew: taken when they are due, kept by round, shown by name on both pages."""

from __future__ import annotations

import pytest

import fedlab
import toy
from fedlab.comparison.cell import Cell
from fedlab.comparison.page import render as render_comparison
from fedlab.comparison.result import Comparison
from fedlab.report import samples
from fedlab.report.run_page import render
from fedlab.runs.directory import RunDirectory
from pages import Page
from tables import put


@pytest.fixture
def scribbles(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SCRIBBLES)


@pytest.fixture
def run(scribbles, tmp_path):
    def started(**changes):
        return fedlab.run(toy.write_preset(tmp_path, strategy="source_only", **changes), runs=tmp_path / "runs")

    return started


def scored(result):
    return [record["round"] for record in result.rounds if "size" in record["score"]]


def test_a_picture_is_kept_for_every_round_that_is_scored(run):
    result = run()
    pictures = RunDirectory.open(result.directory).images()
    assert list(pictures) == ["gray_squares"] and list(pictures["gray_squares"]) == [0, 1, 2, 3] == scored(result)
    assert pictures["gray_squares"][2].read_bytes() == toy.square(result.rounds[2]["score"]["size"])


def test_scores_are_as_rare_as_asked_for_and_the_last_round_has_one(run):
    assert scored(run(sample_every=2)) == [0, 2, 3]


def test_a_budget_that_ends_a_run_makes_its_last_round(run):
    result = run(rounds=50, sample_every=40, budget_seconds=1e-6)
    assert result.rounds[-1]["round"] < 40 and scored(result) == sorted({0, result.rounds[-1]["round"]})


def test_rounds_are_sorted_as_numbers(tmp_path):
    (tmp_path / "config.toml").touch()
    directory = RunDirectory.open(tmp_path)
    for number in (10, 9, 2):
        directory.save_image("a-round-trip", number, b"")
    assert {name: list(found) for name, found in directory.images().items()} == {"a-round-trip": [2, 9, 10]}


@pytest.mark.engine
def test_the_page_of_a_run_shows_the_newest_and_some_before_it(run):
    result = run(rounds=12)
    (series,) = samples.of_run(result.directory)
    assert series.newest.title == "gray squares, round 12"
    titles = [image.title for image in series.earlier]
    assert len(titles) == samples.EARLIER and titles[0] == "round 0" and titles[-1] == "round 11"
    page = Page(render(result))
    images = [target for target in page.targets if target.startswith("data:image/png;base64,")]
    assert len(images) == 1 + samples.EARLIER and "Drawn by the model" in page.text


@pytest.mark.engine
def test_a_run_without_pictures_has_no_such_section(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    result = fedlab.run(toy.write_preset(tmp_path), runs=tmp_path / "runs")
    assert samples.of_run(result.directory) == [] and "Drawn by" not in render(result)


@pytest.mark.engine
def test_the_page_of_a_comparison_shows_every_variant_once(run, tmp_path):
    results = [run(seed=seed, rounds=rounds) for rounds in (1, 2) for seed in (0, 1)]
    names = [("one", 0), ("one", 1), ("two", 0), ("two", 1)]
    cells = [
        Cell(label, "source_only", seed, {}, str(result.directory.relative_to(tmp_path.resolve())), "finished")
        for (label, seed), result in zip(names, results, strict=True)
    ]
    comparison = Comparison(tmp_path.resolve(), "toy", [0, 1], "one", "accuracy", cells)
    page = Page(render_comparison(comparison))
    images = [target for target in page.targets if target.startswith("data:image/png;base64,")]
    assert len(images) == 2 and "Drawn by the models" in page.text
