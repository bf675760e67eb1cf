"""A comparison's tables in a terminal, whose width they fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fedlab.comparison import columns, text_tables

OPTIONAL_COLUMNS = (columns.ROUNDS, columns.RANK, columns.TRAFFIC, columns.TIME, columns.GAP)  # in a narrow terminal


def column_widths(text: text_tables.TextTable) -> list[int]:
    """Return the width that each column needs: no cell and no word of its head is broken."""
    return [
        max([*map(len, head.split()), *(len(row[at]) for row in text.rows), 0]) for at, head in enumerate(text.heads)
    ]


def needed_width(widths: Sequence[int]) -> int:
    """Return the width of a table: a space on either side of each column, and one before all."""
    return sum(widths) + 2 * len(widths) + 1


def drop_columns(text: text_tables.TextTable, width: int) -> tuple[text_tables.TextTable, list[str]]:
    """Drop as many ``OPTIONAL_COLUMNS``, in their order, as it takes for a table to be no wider than ``width``.

    Returns
    -------
    The table, and the heads of the dropped columns.
    """
    dropped: list[str] = []
    for spare in (head for head in OPTIONAL_COLUMNS if head in text.heads):
        if needed_width(column_widths(text)) <= width:
            break
        at = list(text.heads).index(spare)
        rows = [[*row[:at], *row[at + 1 :]] for row in text.rows]
        text = replace(text, heads=[*text.heads[:at], *text.heads[at + 1 :]], rows=rows)
        dropped.append(spare)
    return text, dropped


def as_rich_table(text: text_tables.TextTable, width: int, texts: int = 1) -> Table:
    """Return a table for a terminal; where whole heads are too wide, they are broken before any figure is.

    Parameters
    ----------
    texts
        Number of columns, from the first, that are no figures.
    """
    table = Table(
        title=Text(text.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    least = column_widths(text)
    whole = [max(len(head), longest) for head, longest in zip(text.heads, least, strict=True)]
    breaks = needed_width(least) <= width < needed_width(whole)
    for number, head in enumerate(text.heads):
        table.add_column(
            Text(head),
            justify="right" if number >= texts else "left",
            overflow="fold",
            no_wrap=not number,
            width=least[number] if breaks else None,
        )
    for row in text.rows:
        table.add_row(*(Text(cell, style="bold" if isinstance(cell, text_tables.Best) else "") for cell in row))
    return table
