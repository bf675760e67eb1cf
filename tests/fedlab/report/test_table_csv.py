"""The CSV files inside a page: unrounded numbers, texts that no spreadsheet takes for formulas."""

from __future__ import annotations

import base64
import math

import pytest
from markupsafe import Markup

import many_clients
from fedlab.report.run_page import render
from fedlab.report.run_tables import ColumnHeader, TableCell, TableRow
from fedlab.report.table_csv import address, table_address
from pages import Page


def content(link: str) -> str:
    assert link.startswith("data:text/csv;charset=utf-8;base64,")
    return base64.b64decode(link.partition(",")[2]).decode()


def test_numbers_are_unrounded_and_what_is_missing_is_empty():
    heads = ["client", ColumnHeader("accuracy", "a"), ColumnHeader("", ""), "note", "k"]
    drawing = TableCell("", drawing=Markup("<svg/>"))
    rows = [
        TableRow(
            "a,b", [TableCell("33.3 %", value=1 / 3), drawing, TableCell("-"), TableCell("8", value=0.0, as_text=True)]
        ),
        TableRow(
            '"', [TableCell("-", value=math.nan), drawing, TableCell("x"), TableCell("9", value=1.0, as_text=True)]
        ),
    ]
    assert content(table_address(heads, rows)) == (f'client,accuracy,note,k\n"a,b",{1 / 3},,8\n"""",,x,9\n')


@pytest.mark.parametrize(
    ("text", "written"), [("=1+1", "'=1+1"), ("@x", "'@x"), ("-0.5", "-0.5"), ("-x", "'-x"), ("a", "a")]
)
def test_no_text_is_a_formula(text, written):
    assert content(address([[text]])) == f"{written}\n"


def test_every_table_of_a_run_has_a_file_and_that_of_many_clients_has_all(tmp_path):
    result = many_clients.write_run(tmp_path)
    seen = Page(render(result))
    assert {"results-table.csv", "worst-table.csv", "time-table.csv", "traffic-table.csv"} <= set(seen.files)
    heads, *rows = seen.files["worst-table.csv"]
    assert heads[0] == "client" and len(rows) == 1000  # the page has room for a hundred
    values = [float(row[1]) for row in rows]
    assert values == sorted(values)
    assert float(seen.files["results-table.csv"][1][1]) == pytest.approx(sum(values[:100]) / 100)
