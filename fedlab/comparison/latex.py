r"""A comparison's tables for a paper: one LaTeX ``table`` each, with rules of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fedlab.comparison import text_tables
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
}


COSTS = ("rounds", "bytes", "time")  # columns that get a table of their own: with them the first one is too wide


def latex(comparison: Comparison) -> str:
    """Return the tables of a comparison as LaTeX, with the command that makes them as a comment."""
    scores, *others = text_tables.tables(comparison)
    names = [str(head) for head in scores.heads if head not in COSTS]
    key, name = len(comparison.keys), re.sub(r"[^A-Za-z0-9]+", "-", comparison.directory.name).strip("-")
    tables = [
        _table(_columns(scores, names), f"{name}-scores", text_tables.legend(comparison)),
        *(_table(table, f"{name}-{number}") for number, table in enumerate(others, 2)),
        _table(_columns(scores, [*scores.heads[:key], *COSTS], "Cost of training, mean over seeds"), f"{name}-cost"),
    ]
    return "\n\n".join([f"% {comparison.command}\n% needs \\usepackage{{booktabs}}", *tables]) + "\n"


def _columns(table: text_tables.TextTable, names: Sequence[str], title: str = "") -> text_tables.TextTable:
    """Return some columns of a table, by their heads."""
    places = [list(table.heads).index(name) for name in names]
    rows = [[row[place] for place in places] for row in table.rows]
    return text_tables.TextTable(title or table.title, names, rows)


def _table(table: text_tables.TextTable, label: str, note: str = "") -> str:
    columns = "l" + "r" * (len(table.heads) - 1)
    caption = ". ".join(filter(None, (table.title, note)))
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
