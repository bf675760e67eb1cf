r"""A comparison's tables for a paper: one LaTeX ``table`` each, with rules of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedlab.comparison import columns, text_tables
from fedlab.runs.formatting import MISSING

if TYPE_CHECKING:
    from fedlab.comparison.result import Comparison

SPECIAL = {
    **{mark: rf"\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "<": "$<$",
    ">": "$>$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "\u2212": "$-$",
    "\u202f": r"\,",
    "\u00a0": "~",
    "\n": " ",
}


COSTS = (columns.ROUNDS, columns.TRAFFIC, columns.TIME)  # in a table of their own, or the first one is too wide


def latex(comparison: Comparison) -> str:
    """Return the tables of a comparison as LaTeX, with the command that makes them as a comment."""
    scores, *others = text_tables.tables(comparison)
    kept = [str(head) for head in scores.heads if head not in COSTS]
    cost = [*scores.heads[: len(comparison.keys)], *COSTS]
    name = label(comparison.directory.name)
    tables = [
        latex_table(_part(scores, kept, scores.title, text_tables.score_notes(comparison, kept)), f"{name}-scores"),
        *(latex_table(table, f"{name}-{number}") for number, table in enumerate(others, 2)),
        latex_table(_part(scores, cost, "Cost", columns.notes(comparison, cost)), f"{name}-cost"),
    ]
    return document(comparison.command, tables)


def document(command: str, tables: Sequence[str]) -> str:
    """Return tables behind the command that makes them, as a comment."""
    comment = command.replace("\n", "\n% ")
    return "\n\n".join([f"% {comment}\n% needs \\usepackage{{booktabs}}", *tables]) + "\n"


def label(name: str) -> str:
    """Return the part of a label that a folder's name gives."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _part(
    table: text_tables.TextTable, heads: Sequence[str], title: str, notes: Sequence[str]
) -> text_tables.TextTable:
    """Return some columns of a table, by their heads."""
    places = [list(table.heads).index(head) for head in heads]
    return text_tables.TextTable(title, heads, [[row[place] for place in places] for row in table.rows], notes)


def latex_table(table: text_tables.TextTable, label: str) -> str:
    """Return one table, its notes in its caption."""
    columns = "l" + "r" * (len(table.heads) - 1)
    caption = " ".join([f"{table.title}.", *table.notes])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _row(table.heads),
            r"\midrule",
            *map(_row, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _row(cells: Iterable[str]) -> str:
    # The end of a row takes what follows in brackets for a length, so that a cell must not begin with one.
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(cell: str) -> str:
    text = "--" if cell == MISSING else re.sub(r"(?<![\w$])-(?=\d)", "$-$", escape(cell))
    text = "{}" + text if text.startswith(("[", "*")) else text
    return rf"\textbf{{{text}}}" if isinstance(cell, text_tables.Best) else text


def escape(text: str) -> str:
    r"""Return text in which no character is a command of LaTeX.

    >>> escape("source_only: 83.1 % ± 0.4")
    'source\\_only: 83.1 \\% $\\pm$ 0.4'
    """
    return "".join(SPECIAL.get(mark, mark) for mark in text)
