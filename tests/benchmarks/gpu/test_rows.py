"""The table of the GPU benchmark, and its file."""

from __future__ import annotations

import io
import json

from rich.console import Console

from benchmarks.gpu.rows import Record, Row, cells, table_of


def test_a_goal_is_reached_from_its_side():
    assert Row("a", "b", 3.0, goal=2.0).reached
    assert Row("a", "b", 3.0, goal=2.0, at_most=True).reached is False
    assert Row("a", "b", None, goal=2.0).reached is Row("a", "b", 3.0).reached is None


def test_cells_have_the_ratio_to_what_is_beside_them():
    row = Row("speed", "net", 1500.0, "images/s", 2500.0, reference="loop", reference_value=500.0)
    assert cells(row) == ["speed", "net", "1,500 images/s", "≥ 2,500 ✗", "loop 500 (3.00 x)", ""]
    assert cells(Row("speed", "net", note="not here", error="OOM"))[-1] == "FAILED: OOM; not here"


def test_the_table_counts_checks_and_shows_those_that_failed():
    rows = [Row("right", name, error=error, tally=True) for name, error in (("one", ""), ("two", "other bits"))]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table_of([*rows, Row("speed", "net", 2.0)], "a card"))
    text = console.export_text()
    assert "checks passed" in text and "two" in text and "other bits" in text and "one" not in text


def test_brackets_in_a_message_are_no_markup():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table_of([Row("right", "one", error="pip install 'fedlab-adapt[backbones]'")], "a card"))
    assert "fedlab-adapt[backbones]" in console.export_text()


def test_the_file_has_each_row_as_soon_as_it_is_known(tmp_path):
    file = tmp_path / "new/gpu.json"
    record = Record(file, {"card": "none"})
    record.add([Row("a", "b", 1.0)])
    found = json.loads(file.read_text())
    assert found["card"] == "none" and found["rows"][0]["value"] == 1.0 and not record.failed
    record.add([Row("a", "c", error="died")])
    assert record.failed and len(json.loads(file.read_text())["rows"]) == 2
