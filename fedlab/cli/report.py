"""``fedlab report``: the page of a run or a comparison, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.consoles import stdout
from fedlab.errors import RunError


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="A run directory with a round, or the folder of a comparison.")
    ],
) -> None:
    """Write report.html of a run, or page and tables of a comparison, from what is on disk; nothing is run.

    A run ends with its page. This makes it again: of a run that goes on or was interrupted, or after the disk was full.

    Example: `fedlab report runs/dualadapt-digits-0`
    """
    page = _comparison_page(directory) if (directory / "comparison.json").is_file() else _run_page(directory)
    stdout.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)


def _run_page(path: Path) -> Path:
    from fedlab.launch import write_page
    from fedlab.runs.directory import RunDirectory
    from fedlab.runs.result import Result

    directory = RunDirectory.open(path)
    if not directory.rounds():
        raise RunError(
            f"{directory.path} has no round yet, and nothing to show; `fedlab resume {directory.path}` goes on"
        )
    write_page(Result.read(directory.path))
    return directory.page


def _comparison_page(path: Path) -> Path:
    from fedlab.comparison import files
    from fedlab.comparison.result import Comparison

    files.write_files(Comparison.read(path))
    return path.resolve() / "report.html"
