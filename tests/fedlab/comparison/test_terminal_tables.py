"""Tables of a comparison in terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedlab.comparison import terminal_tables, text_tables

HEADS = ["variant", "accuracy", "difference", "p, Holm", "gap closed", "rank", "rounds", "traffic", "time"]
ROW = ["dualadapt_no_mixup", "83.5 ± 0.6", "+17.8 ± 12.0", "< 0.001", "34 %", "1.0", "5", "33.8 MB", "1 min 48 s"]


@pytest.mark.parametrize("width", [100, 90, 80, 70, 60])
def test_heads_are_broken_before_any_figure(width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    text, _ = terminal_tables.drop_columns(text_tables.TextTable("t", HEADS, [ROW]), width)
    console.print(terminal_tables.as_rich_table(text, width), width=width)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    (row,) = [line for line in lines if ROW[0] in line]
    assert [cell.strip() for cell in row.split("  ") if cell.strip()] == list(text.rows[0])


def test_a_narrow_terminal_goes_without_some_columns():
    heads = ["variant", "accuracy", "difference", "p, Holm", "rank", "rounds", "traffic", "time"]
    text = text_tables.TextTable(
        "t", heads, [["dualadapt", "83.5 ± 0.6", "+7.8 ± 2.0", "0.002", "1.0", "5", "33.8 MB", "48 s"]]
    )
    assert terminal_tables.drop_columns(text, 100) == (text, [])
    narrow, dropped = terminal_tables.drop_columns(text, 60)
    assert dropped == ["rounds", "rank"]
    assert narrow.heads == ["variant", "accuracy", "difference", "p, Holm", "traffic", "time"]
    assert narrow.rows == [["dualadapt", "83.5 ± 0.6", "+7.8 ± 2.0", "0.002", "33.8 MB", "48 s"]]
    assert terminal_tables.drop_columns(text_tables.TextTable("t", heads, []), 20)[0].heads == heads[:4]


def test_a_comparison_without_any_result_has_a_table_all_the_same():
    text = text_tables.TextTable("t", ["", "time"], [])
    assert terminal_tables.drop_columns(text, 100) == (text, [])
