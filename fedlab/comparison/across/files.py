"""Several comparisons as files: ``table.csv`` for programs, ``table.md``, ``.tex`` and a page for people."""

from __future__ import annotations

import shlex
from pathlib import Path

from fedlab.comparison import latex
from fedlab.comparison.across import page, tables
from fedlab.comparison.across.comparison_set import ComparisonSet
from fedlab.comparison.files import markdown_text
from fedlab.comparison.result import FACTS, FIGURES
from fedlab.errors import RunError, os_error_sentence
from fedlab.files import write_atomically
from fedlab.report.pdf import write_figures as write_pdf

FOLDER = Path("comparisons") / "across"


def write_files(found: ComparisonSet, folder: Path) -> Path:
    """Write the files into a folder, each whole or not at all; return the path of the page.

    Raises
    ------
    RunError
        When the folder is that of a comparison, whose files have these names, or cannot be written.
    """
    if (folder / FACTS).is_file():
        raise RunError(f"{folder} is the folder of a comparison; choose another one (--out)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        line = command(found, folder)
        for name, content in (
            ("table.csv", str(found.summary().to_csv(index=False))),
            ("table.md", markdown_text(line, tables.tables(found))),
            ("table.tex", latex_text(found, folder)),
            ("report.html", page.render(found, folder.resolve().name, line)),
        ):
            write_atomically(folder / name, content.encode())
    except OSError as error:
        raise RunError(f"no report can be made in {folder} (--out): {os_error_sentence(error)}") from None
    return folder.resolve() / "report.html"


def write_figures(found: ComparisonSet, folder: Path) -> list[Path]:
    """Write the critical-difference diagram, where there is one, into ``figures/`` and return its path."""
    diagram = page.rank_figure(found)
    return write_pdf(folder.resolve() / FIGURES, [("critical difference", diagram)] if diagram else [])


def latex_text(found: ComparisonSet, folder: Path) -> str:
    """Return the tables as LaTeX, with the command that makes them as a comment."""
    name, (scores, tests) = latex.label(folder.resolve().name), tables.tables(found)
    shown = [latex.latex_table(scores, f"{name}-scores"), latex.latex_table(tests, f"{name}-tests")]
    return latex.document(command(found, folder), shown)


def command(found: ComparisonSet, folder: Path) -> str:
    """Return the command that makes the files again, from any folder."""
    places = [str(comparison.directory) for comparison in found.comparisons]
    return shlex.join(["fedlab", "report", *places, "--out", str(folder.resolve())])
