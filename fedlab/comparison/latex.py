r"""A comparison's tables for a paper: one LaTeX ``table`` each, with rules of the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedlab.comparison import text_tables

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


def latex(comparison: Comparison) -> str:
    """Return the tables of a comparison as LaTeX, with the command that makes them as a comment."""
    parts = [f"% {comparison.command}\n% needs \\usepackage{{booktabs}}"]
    parts += [_table(table) for table in text_tables.tables(comparison)]
    return "\n\n".join(parts) + "\n"


def _table(table: text_tables.TextTable) -> str:
    columns = "l" + "r" * (len(table.heads) - 1)
    rows = "\n".join(map(_row, table.rows))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _row(table.heads),
            r"\midrule",
            *([rows] if rows else []),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(escape, map(str, cells))) + r" \\"


def escape(text: str) -> str:
    r"""Return text in which no character is a command of LaTeX.

    >>> escape("source_only: 83.1 % ± 0.4")
    'source\\_only: 83.1 \\% $\\pm$ 0.4'
    """
    return "".join(SPECIAL.get(mark, mark) for mark in text)
