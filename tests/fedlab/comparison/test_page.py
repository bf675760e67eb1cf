"""The page of a comparison: real runs of the toy workload, looked at through an HTML parser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import shutil

import pandas as pd
import pytest

import few_clients
from fedlab.comparison import client_panels, learning_curves, page_tables
from fedlab.comparison.cell import FINISHED, Cell
from fedlab.comparison.page import render, summary, write_comparison
from fedlab.comparison.result import Comparison
from fedlab.runs.formatting import human_bytes
from pages import Page


def changed(whole, folder, **changes):
    """A copy of a comparison with other facts; its runs stay where they are."""
    cells = [dataclasses.replace(cell, run=str(whole.directory / cell.run)) for cell in whole.cells]
    return dataclasses.replace(whole, **{"directory": folder, "cells": cells, **changes})


@pytest.fixture
def text(comparison):
    return render(comparison)


def test_a_mean_that_lacks_a_client_is_marked(tmp_path):
    """Seed 1 loses the far client in round 1; the near one alone is a larger mean, and no gain."""
    cells = []
    for seed in range(2):
        rounds = [(0.8, 0.2), (0.8, 0.3), (0.8, 0.4), (0.8, 0.5)]
        written = few_clients.write_run(tmp_path, "lost", seed, rounds, "accuracy")
        cells.append(Cell("lost", "s", seed, {}, written, FINISHED))
    whole = Comparison(tmp_path, "toy", [0, 1], "lost", "accuracy", cells)
    said = "An open dot is a mean without a client that was not tested in some rounds of a seed (far)"
    assert said not in render(whole)
    path = tmp_path / cells[1].run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    del records[1]["clients"]["far"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = Comparison(tmp_path, "toy", [0, 1], "lost", "accuracy", cells)
    assert said in render(made)
    styles = page_tables.variants(made, made.summary())
    for drawings, before in (
        (learning_curves.curve_figures(made, styles), learning_curves.curve_figures(whole, styles)),
        (learning_curves.cost_figures(made, styles), learning_curves.cost_figures(whole, styles)),
    ):
        line = rf'<path d="([^"]*)"[^>]*fill: none[^>]*var\(--c{styles[0].slot}\)'
        broken, one = (re.findall(line, of[0].svg) for of in (drawings, before))
        assert [line.count("L") for line in broken if "L" in line] == [1]
        assert [line.count("L") for line in one if "L" in line] == [3]


def test_the_page_is_one_file_that_loads_nothing_and_runs_its_own_script_only(comparison, tmp_path):
    path = write_comparison(changed(comparison, tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    seen = Page(text)
    assert not {"link", "iframe", "object", "img"} & set(seen.tags)
    inside = [target for target in seen.targets if not target.startswith("data:text/csv;")]
    assert all(target.startswith("#") and target[1:] in seen.ids for target in inside)
    assert len(seen.ids) == len(set(seen.ids))
    assert not re.search(r"url\(|@import|@font-face|src=|https?:", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
    assert len(text.encode()) < 3e6


def test_numbers_are_those_of_the_table(comparison, text):
    table, seen = comparison.summary(), Page(text)
    heads, *rows = seen.tables[0]
    assert heads == ["variant", "accuracy", "difference", "p, Holm", "rank", "traffic", "time"]
    assert [row[0] for row in rows] == ["source_only", "dualadapt"]
    for row, (_, wanted) in zip(rows, table.iterrows(), strict=True):
        half = (wanted["high"] - wanted["low"]) / 2
        assert row[1] == f"{comparison.metric_table.format('accuracy', wanted['mean'])} ± {100 * half:.1f}"
        assert row[5] == human_bytes(wanted["bytes"])
    assert rows[0][2] == "-"
    assert rows[1][2] == f"{100 * table['difference'][1]:+.1f}".replace("-", "\u2212")
    values = re.findall(r'data-value="([^"]*)"', text)
    assert {repr(value) for value in table["mean"]} <= set(
        values
    )  # sorted by what table.csv holds, not by its rounding


def test_the_heat_map_shows_every_client_with_its_value(comparison, text):
    found = comparison.domains().set_index(["label", "client"])["mean"]
    heat = next(table for table in Page(text).tables if table[0][1:] == ["near", "far"])
    for row in heat[1:]:
        for client, cell in zip(("near", "far"), row[1:], strict=True):
            assert cell.startswith(comparison.metric_table.format("accuracy", found[row[0], client]))
    lines = page_tables.variants(comparison, comparison.summary())
    _, rows = page_tables.heat_table(comparison, lines)
    cells = [cell for row in rows for cell in row.cells]
    assert max(cells, key=lambda cell: cell.value).heat == 1.0 and min(cells, key=lambda cell: cell.value).heat == 0.0


def test_every_part_is_there(text, comparison):
    seen = Page(text)
    words = "".join(seen.text)
    for wanted in (
        "results",
        "differences",
        "clients-map",
        "curves",
        "costs",
        "client-panels",
        "again",
        "how",
        "failures",
    ):
        assert wanted in seen.ids
    assert "fedlab compare toy --strategies source_only,dualadapt,fedbn --seeds 2" in words
    ran_at = comparison.commits or [comparison.git_commit]  # of the cells, not of the last call
    assert all(commit.removesuffix("-dirty") in words for commit in ran_at) and "2.14.1" in words
    assert "the clients hold <no> labels" in words  # the cell that failed, with its error
    assert "accuracy of source_only; accuracy (average) of dualadapt" in words
    assert "paired t-test" in words and "Student" in words and "Holm" in words
    # 3 panels of curves, 2 of costs, and for each client 3 maps of both variants and the weights of one
    assert seen.tags.count("figure") == 3 + 2 + 2 * (3 * 2 + 1)
    assert all(seen.labels)


def test_curves_are_means_with_bands_of_the_seeds(comparison):
    lines = page_tables.variants(comparison, comparison.summary())
    frame = comparison.frame
    own = frame[(frame["label"] == "dualadapt") & (frame["client"] == "far") & (frame["round"] == 2)]["score"]
    curve = learning_curves._curve(frame[frame["client"] == "far"], comparison, lines[1], [0, 1, 2])
    assert curve.values[2] == pytest.approx(own.mean())
    assert [edge[2] for edge in curve.band] == [own.min(), own.max()]
    assert "fill-opacity" in learning_curves.curve_figures(comparison, lines)[0].svg


def test_many_variants_have_fewer_panels(comparison, monkeypatch):
    monkeypatch.setattr(learning_curves, "LINES", 3)  # two variants: one client's panel
    text = render(comparison)
    assert "1 more client is in the table above" in text
    assert text.count('aria-label="accuracy by round') == 2


def test_one_seed_has_no_interval_and_no_band(comparison, tmp_path):
    cells = [cell for cell in changed(comparison, tmp_path).cells if cell.seed == 0]
    one = changed(comparison, tmp_path, seeds=[0], cells=cells)
    text = render(one)
    assert "±" not in Page(text).tables[0][1][1]
    assert "fill-opacity: 0.16" not in text


def test_names_and_errors_are_harmless(comparison, tmp_path):
    evil = '<script>alert("x")</script>"&@$x$'
    cells = [
        dataclasses.replace(cell, label=evil if cell.label == "dualadapt" else cell.label, error=evil)
        for cell in changed(comparison, tmp_path).cells
    ]
    mean = changed(comparison, tmp_path, cells=cells, preset=evil, command=evil, created=evil, versions={evil: evil})
    seen = Page(render(mean))
    assert seen.tags.count("script") == 1
    assert any(evil in row[0] for row in seen.tables[0])


def test_variants_without_a_view_of_their_clients_are_named(comparison, tmp_path):
    copy = shutil.copytree(comparison.directory, tmp_path / "copy", ignore=shutil.ignore_patterns("clients.npz"))
    shutil.rmtree(copy / comparison.cells[0].run / "checkpoints")
    seen = Page(render(dataclasses.replace(comparison, directory=copy)))
    words = "".join(seen.text)
    assert "no-client-panels" in seen.ids and "has no checkpoint; `fedlab resume" in words
    assert seen.tags.count("figure") == 3 + 2 + 2 * (3 + 1)  # the other variant's stay


def test_of_many_clients_a_few_have_panels_whatever_is_compared(comparison, monkeypatch):
    styles = page_tables.variants(comparison, comparison.summary())
    assert client_panels.client_panels(comparison, styles).hidden == 0
    monkeypatch.setattr(client_panels, "FEW", 1)
    monkeypatch.setattr(client_panels, "MAX_OF_MANY", 1)
    found = client_panels.client_panels(comparison, styles)
    assert list(found.by_client) == ["near"] and found.hidden == 1


def test_nothing_finished_yet(comparison, tmp_path):
    cells = [Cell("source_only", "source_only", 0, {}, "cells/x"), Cell("a", "a", 0, {}, "cells/y", "failed", "why")]
    text = "".join(Page(render(changed(comparison, tmp_path, cells=cells))).text)
    assert "No cell of this comparison has finished yet." in text
    assert "Not run yet: 1 of 2 cells." in text and "why" in text


def test_a_grid_names_its_rows_by_their_options(comparison, tmp_path):
    cells = [
        dataclasses.replace(cell, label="dualadapt", options={"server.steps": cell.label} if cell.seed else {})
        for cell in changed(comparison, tmp_path).cells[:4]
    ]
    grid = changed(comparison, tmp_path, cells=cells, grid={"server.steps": ["source_only", "dualadapt"]})
    table = grid.summary()
    names = [line.name for line in page_tables.variants(grid, table)]
    assert names[0] == "dualadapt" and "dualadapt, steps=source_only" in names
    seen = Page(render(grid))
    known = [table for table in seen.tables if table[0][0] == "variant" and "status" not in table[0]]
    assert len(known) >= 2
    for heads, *rows in known:  # a column of its own, where the label stands alone
        assert heads[:2] == ["variant", "steps"]
        assert {(row[0], row[1]) for row in rows} <= {("dualadapt", part) for part in ("-", "source_only", "dualadapt")}
    assert "more client" not in " ".join(seen.text)


def test_every_variant_has_a_line_of_its_own(comparison):
    table = pd.DataFrame({"label": ["source_only", *(f"v{i}" for i in range(30))]})
    lines = page_tables.variants(comparison, table)
    assert len({(line.slot, line.dashes) for line in lines}) == 31
    assert [line.slot for line in lines].count(1) == 1


def test_a_strategy_keeps_its_color_over_a_grid(comparison, tmp_path):
    grid = changed(comparison, tmp_path, grid={"server.steps": ["1", "2"], "client.steps": ["3"]})
    rows = [(label, steps, "3") for steps in "12" for label in ("source_only", "a", "b")]
    lines = page_tables.variants(grid, pd.DataFrame(rows, columns=["label", "server.steps", "client.steps"]))
    colors = {line.key[0]: {other.slot for other in lines if other.key[0] == line.key[0]} for line in lines}
    assert colors == {"source_only": {1}, "a": {2}, "b": {3}}
    assert len({(line.slot, line.dashes) for line in lines}) == 6
    assert lines[0].name == "source_only, server.steps=1, client.steps=3"  # "steps" alone would be either


def test_the_lead_says_who_is_best_and_whether_that_is_chance(comparison):
    table = comparison.summary()
    lines = page_tables.variants(comparison, table)
    table["mean"], table["difference"], table["p_holm"] = [0.5, 0.6], [math.nan, 0.1], [math.nan, 0.0123]
    table["low"] = table["high"] = math.nan
    assert summary(comparison, table, lines) == (
        "Of 2 variants on 2 seeds, dualadapt has the best accuracy: 60.0 %, 10.0 points above source_only (p = 0.012)."
    )
    table["p_holm"] = [math.nan, 0.2]
    assert summary(comparison, table, lines).endswith("above source_only (p = 0.20), which may be chance.")
    table["mean"] = [0.7, 0.6]
    assert summary(comparison, table, lines).endswith("It is the baseline itself.")
