"""Several comparisons as data sets: numbers by hand from run directories that are written down here."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

import few_clients
from fedlab.cli.app import app
from fedlab.comparison.across import files, page, tables
from fedlab.comparison.across.comparison_set import ComparisonSet
from fedlab.comparison.cell import FAILED, FINISHED, Cell
from fedlab.comparison.data_sets import critical_difference
from fedlab.comparison.result import Comparison
from fedlab.errors import RunError
from pages import Page

# accuracy of both clients by data set and variant, the same with both seeds but for one hundredth
SCORES = {
    "digits": {"low": 0.60, "high": 0.80, "middle": 0.70, "top": 0.95},
    "objects": {"low": 0.30, "high": 0.50, "middle": 0.35, "top": 0.60, "alone": 0.90},
    "streets": {"low": 0.50, "high": 0.45, "middle": 0.55, "top": 0.70},
}


def write_comparison(folder, scores, **changes):
    cells = [
        Cell(
            label,
            label,
            seed,
            {},
            few_clients.write_run(folder, label, seed, [(0.1, 0.1), values], "accuracy"),
            FINISHED,
        )
        for label, score in scores.items()
        for seed, values in enumerate([(score, score), (score + 0.01, score + 0.01)])
    ]
    made = Comparison(
        folder, folder.name, [0, 1], "low", "accuracy", cells, upper_bound="top", command="fedlab compare"
    )
    made = replace(made, **changes)
    made.write()
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("comparisons")
    return [write_comparison(place / name, scores) for name, scores in SCORES.items()]


@pytest.fixture
def found(folders):
    return ComparisonSet.read(folders)


def test_the_summary_by_hand(found):
    assert (found.names, found.baseline, found.uses_labels) == (list(SCORES), "low", ["top"])
    assert found.left_out == {"alone": ["objects"]}
    rows = found.summary().set_index("variant")
    assert list(rows.index) == ["low", "high", "middle", "top"]
    assert rows.loc["high", ["digits", "objects", "streets"]].tolist() == pytest.approx([0.805, 0.505, 0.455])
    assert rows.loc["high", "mean"] == pytest.approx(1.765 / 3)
    assert rows.loc["high", "digits_low"] < 0.805 < rows.loc["high", "digits_high"]
    assert rows["rank"].tolist()[:3] == pytest.approx([8 / 3, 5 / 3, 5 / 3]) and math.isnan(rows.loc["top", "rank"])
    assert rows.loc["high", "difference"] == pytest.approx(0.35 / 3)
    assert rows.loc["high", ["wins", "data_sets", "wilcoxon_method"]].tolist() == [2, 3, "exact"]
    # ranks of 0.2, 0.2, -0.05: 2.5, 2.5, 1; of the 8 signs, 4 are as far from even
    assert rows.loc["high", "p_wilcoxon"] == pytest.approx(4 / 8)
    assert rows.loc["middle", "p_wilcoxon"] == pytest.approx(2 / 8)
    assert rows.loc["middle", "p_wilcoxon_holm"] == pytest.approx(3 * 2 / 8)


def test_ranks_and_their_critical_difference_are_over_data_sets(found):
    scores = [[0.605, 0.305, 0.505], [0.805, 0.505, 0.455], [0.705, 0.355, 0.555]]
    assert found.ranking().ranks == critical_difference(scores).ranks
    assert found.ranking().p == pytest.approx(stats.friedmanchisquare(*scores).pvalue)


def test_text_has_bold_ranks_and_what_its_columns_mean(found):
    scores, tests = tables.tables(found)
    assert scores.heads == ["variant", "digits", "objects", "streets", "mean", "rank"]
    bold = [[cell for cell in row if isinstance(cell, tables.Best)] for row in scores.rows]
    assert [len(cells) for cells in bold] == [0, 2, 1, 0]  # never what learns from labels
    assert tests.rows[0] == ["high", "+11.7", "2 of 3", "0.50", "0.75"]
    notes = " ".join([*scores.notes, *tests.notes])
    for words in ("Friedman", "Nemenyi", "p is exact", "to low", "Not on every data set: alone", "top: learns"):
        assert words in notes


def test_two_data_sets_have_a_test_and_no_diagram(folders):
    found = ComparisonSet.read(folders[:2])
    assert found.ranking() is None and page.rank_figure(found) is None
    assert "need three variants and three data sets" in " ".join(tables.scores(found).notes)
    assert page.render(found, "two", "fedlab report")


def test_the_command_writes_every_file(folders, tmp_path):
    out = tmp_path / "over-sets"
    result = CliRunner().invoke(app, ["report", *map(str, folders), "--out", str(out), "--pdf"])
    assert result.output == f"wrote {out}/report.html\nwrote 1 figure in {out}/figures\n"
    assert sorted(path.name for path in out.iterdir()) == [
        "figures",
        "report.html",
        "table.csv",
        "table.md",
        "table.tex",
    ]
    assert pd.read_csv(out / "table.csv")["variant"].tolist() == ["low", "high", "middle", "top"]
    assert (out / "table.tex").read_text().count(r"\begin{table}") == 2
    seen = Page((out / "report.html").read_text(encoding="utf-8"))
    assert [row[0] for row in seen.tables[0][1:]] == ["low", "high", "middle", "top"]
    assert seen.tables[0][0] == ["variant", "digits", "objects", "streets", "mean", "rank"]
    assert any("Mean ranks over 3 data sets" in words for words in seen.labels)
    words = "".join(seen.text)
    assert str(folders[0]) in words and "alone (has objects)" in words


def test_names_tell_folders_apart(tmp_path):
    places = [write_comparison(tmp_path / above / "run", SCORES["digits"]) for above in ("a", "b")]
    assert ComparisonSet.read(places).names == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("changes", "scores", "words"),
    [
        ({"metric": "loss"}, SCORES["digits"], "different metrics.*other by loss"),
        ({}, {"alone": 0.5, "low": 0.3}, "fewer than two variants.*other has alone, low"),
        ({"cells": []}, SCORES["digits"], "other has none yet"),
    ],
)
def test_what_cannot_be_compared_is_refused(folders, tmp_path, changes, scores, words):
    other = write_comparison(tmp_path / "other", scores, **changes)
    with pytest.raises(RunError, match=words):
        ComparisonSet.read([folders[0], other])


def test_one_label_of_two_strategies_is_refused(folders, tmp_path):
    other = write_comparison(tmp_path / "other", SCORES["digits"])
    made = Comparison.read(other)
    replace(made, cells=[replace(cell, strategy=f"{cell.strategy}2") for cell in made.cells]).write()
    with pytest.raises(RunError, match="low is low in digits, low2 in other"):
        ComparisonSet.read([folders[0], other])


def test_wrong_folders_are_refused(folders, tmp_path):
    for places, words in (
        ([folders[0], tmp_path], "is no comparison"),
        ([folders[0], folders[0]], "named twice"),
        ([folders[0]], "one comparison is one data set"),
    ):
        with pytest.raises(RunError, match=words):
            ComparisonSet.read(places)
    with pytest.raises(RunError, match="is the folder of a comparison"):
        files.write_files(ComparisonSet.read(folders), folders[0])
    result = CliRunner().invoke(app, ["report", str(folders[0]), "--out", "x"])
    assert result.exit_code != 0 and "--out is for several comparisons" in result.stderr


def test_a_data_set_on_which_a_variant_lost_its_hard_seed_is_judged_on_the_seeds_that_both_have(folders, tmp_path):
    """Its mean alone would be better than the baseline's, which it loses to on each seed."""
    hard = {"low": (0.8, 0.4), "high": (0.7, 0.3)}
    cells = [
        Cell(
            label,
            label,
            seed,
            {},
            few_clients.write_run(tmp_path / "hard", label, seed, [(score, score)], "accuracy"),
            FINISHED if (label, seed) != ("high", 1) else FAILED,
        )
        for label, scores in hard.items()
        for seed, score in enumerate(scores)
    ]
    Comparison(tmp_path / "hard", "hard", [0, 1], "low", "accuracy", cells).write()
    found = ComparisonSet.read([tmp_path / "hard", folders[0]])
    assert found.summary().set_index("variant").loc["high", "wins"] == 1  # on digits alone
    assert found.means(["low", "high"])[:, 0] == pytest.approx([0.8, 0.7])
    assert tables.best(found, "hard") == set() and tables.best(found, "digits") == {"80.5 %"}
    note = "On hard: high is a mean over 1 of 2 seeds."
    assert note in tables.scores(found).notes and note in page.render(found, "all", "")
