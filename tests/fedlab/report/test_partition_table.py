"""How examples are split over clients, drawn where a run has written it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from base64 import b64decode

from fedlab.comparison.page import splits
from fedlab.report import partition_table
from fedlab.report.run_page import render
from fedlab.runs.client_distribution import FEW
from fedlab.runs.result import Result
from pages import Page

LABELED = {
    "clients": [
        {"name": "a<b>", "examples": 12345, "labels": {"10": 5, "2": 12340}},
        {"name": "c", "examples": 10, "labels": None},
    ]
}


def test_classes_in_the_order_of_numbers_and_unknown_ones_said():
    table = partition_table.parse(json.dumps(LABELED))
    assert [row.examples for row in table.rows] == ["12\u202f345", "10"]
    assert "a&lt;b&gt;: 5 of 10, 12340 of 2" in table.rows[0].classes
    assert ">2<" in table.rows[0].classes  # 10 has no room for its name
    assert table.labeled and table.rows[1].classes is None


def test_classes_have_their_names_where_there_is_room_and_in_a_legend(comparison):
    clients = [{"name": "a", "examples": 1203, "labels": {"0": 300, "1": 3, "11": 900}}]
    named = {"classes": ["circle", "<b>", *"cdefghijk", "star"], "clients": clients}
    table = partition_table.parse(json.dumps(named))
    assert [text in table.rows[0].classes for text in (">circle<", ">star<", ">1<", "&lt;b&gt;<")] == [
        True,
        True,
        False,
        False,
    ]
    assert "3 of &lt;b&gt;" in table.rows[0].classes  # what a reader of the screen is told
    assert table.legend == [(1, "0 circle"), (2, "1 <b>"), (3, "11 star")]
    assert b64decode(table.csv.partition("base64,")[2]).startswith(b"client,examples,circle,<b>,star")
    assert not partition_table.parse(json.dumps({**named, "classes": [str(i) for i in range(12)]})).legend
    many = {
        "classes": [f"c{i}" for i in range(60)],
        "clients": [{**clients[0], "labels": dict.fromkeys(map(str, range(60)), 1)}],
    }
    assert not partition_table.parse(json.dumps(many)).legend


def test_without_any_labels_sizes_remain():
    clients = [{"name": name, "examples": count, "labels": None} for name, count in (("a", 4), ("b", 2))]
    table = partition_table.parse(json.dumps({"clients": clients}))
    assert not table.labeled
    assert ['width="100.0"' in row.size for row in table.rows] == [True, False]
    assert 'width="50.0"' in table.rows[1].size


def test_many_clients_are_a_distribution_and_a_few_rows():
    clients = [{"name": str(i), "examples": 4 + i % 3, "labels": {"1": 3, "7": 1 + i % 3}} for i in range(600)]
    table = partition_table.parse(json.dumps({"clients": clients}))
    assert len(table.rows) == FEW and table.clients == 600
    assert table.heads == ["examples", "classes", "share of the largest class"]
    rows = {row.head: [cell.text for cell in row.cells] for row in table.summary}
    assert rows["minimum"] == ["4", "2", "50 %"] and rows["maximum"] == ["6", "2", "75 %"]
    assert rows["mean"] == ["5", "2", "62 %"] and rows["median"][0] == "5"
    bare = partition_table.parse(json.dumps({"clients": [{**client, "labels": None} for client in clients]}))
    assert bare.heads == ["examples"]


def test_both_pages_show_it_where_it_is_there(comparison, tmp_path):
    copy = shutil.copytree(comparison.directory, tmp_path / "copy")
    moved = dataclasses.replace(comparison, directory=copy)
    run = moved.path(moved.cells[0])
    for path in copy.glob("cells/*/split.json"):
        path.unlink()
    assert partition_table.read(run) is None and "split" not in Page(render(Result.read(run))).ids
    (run / "split.json").write_text(json.dumps(LABELED))
    seen = Page(render(Result.read(run)))
    assert ["a<b>", "12\u202f345"] in [row[:2] for table in seen.tables for row in table]
    (moved.path(moved.cells[2]) / "split.json").write_text(json.dumps(LABELED))
    ((name, _),) = splits(moved)
    assert name == ""  # one split for both
    (moved.path(moved.cells[2]) / "split.json").write_text(json.dumps({"clients": LABELED["clients"][:1]}))
    assert [name for name, _ in splits(moved)] == ["source_only", "dualadapt"]
