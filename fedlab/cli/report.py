"""``fedlab report``, ``runs`` and ``export``: runs on disk as a page, as a list, and as a model for other programs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedlab.cli.common import show_rows
from fedlab.cli.consoles import stdout
from fedlab.errors import ConfigError, RunError, plural


def report(
    directories: Annotated[
        list[Path],
        typer.Argument(metavar="DIRECTORY...", help="A run directory with a round, or the folder of a comparison."),
    ],
    pdf: Annotated[bool, typer.Option("--pdf", help="Also each figure of the page as a PDF, in figures/.")] = False,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Of several comparisons: folder of page and tables.")
    ] = None,
) -> None:
    """Write report.html of a run, or page and tables of a comparison, from what is on disk; nothing is run.

    A run ends with its page. This makes it again: of a run that goes on or was interrupted, or after the disk was full;
    and where the data of its clients is here, it adds confusion matrices and example images.

    **Several comparisons** are data sets: the strategies that all of them have are ranked and tested over them. The
    page and tables go to `--out`, by default comparisons/across.

    Example: `fedlab report runs/dualadapt-digits-0`, or `fedlab report comparisons/dualadapt-digits-heads --pdf`
    """
    page, figures = _written(directories, pdf, out_dir)
    stdout.print(f"wrote {page}", markup=False, highlight=False, soft_wrap=True)
    if figures:
        what = plural(len(figures), "figure")
        stdout.print(f"wrote {what} in {figures[0].parent}", markup=False, highlight=False, soft_wrap=True)


def _written(directories: list[Path], pdf: bool, out_dir: Path | None) -> tuple[Path, list[Path]]:
    """Write the page, and its figures if ``pdf``; return the paths of both."""
    if len(directories) > 1:
        return _page_of_several(directories, pdf, out_dir)
    if out_dir is not None:
        raise ConfigError("--out is for several comparisons; the page of one, or of a run, is in its own folder")
    made = _comparison_page if (directories[0] / "comparison.json").is_file() else _run_page
    return made(directories[0], pdf)


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of run directories.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each run, line by line.")] = False,
) -> None:
    """List the runs in a folder: what each is, its status, its rounds, and the figure that it is judged by.

    Example: `fedlab runs`, or of a comparison `fedlab runs comparisons/dualadapt-digits-heads/cells`
    """
    from fedlab.runs.listing import list_runs

    found = list_runs(folder)
    if as_json:
        sys.stdout.writelines(json.dumps(asdict(run)) + "\n" for run in found)
        return
    rows: list[tuple[str, ...]] = [(run.name, run.system, run.status, run.rounds, run.figure) for run in found]
    show_rows(f"{plural(len(rows), 'run')} in {folder}", rows, "run", "what", "status", "rounds", "figure")


def export(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="model.safetensors, or model.onnx.")],
    client: Annotated[
        str | None, typer.Option(help="The client that the model predicts for; else the global one.")
    ] = None,
    server_round: Annotated[
        int | None, typer.Option("--round", help="Round of the checkpoint; the newest unless given.")
    ] = None,
) -> None:
    """Write a model of a run for other programs: its weights (.safetensors), or weights and operations (.onnx).

    Example: `fedlab export runs/fedavg-digits-0 model.safetensors`
    """
    from fedlab.inference.export import export_model

    path = export_model(directory, out, client, server_round)
    stdout.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _run_page(path: Path, pdf: bool) -> tuple[Path, list[Path]]:
    """Write the page of a run, and its figures if ``pdf``; return the paths of both."""
    from fedlab.launch import write_page
    from fedlab.runs.directory import RunDirectory
    from fedlab.runs.result import Result

    directory = RunDirectory.open(path)
    if not directory.rounds():
        raise RunError(
            f"{directory.path} has no round yet, and nothing to show; `fedlab resume {directory.path}` goes on"
        )
    result = Result.read(directory.path)
    write_page(result, with_predictions=True)
    if not pdf:
        return directory.page, []
    from fedlab.report.pdf import write_run_figures

    return directory.page, write_run_figures(result)


def _comparison_page(path: Path, pdf: bool) -> tuple[Path, list[Path]]:
    """Write the page and the tables of a comparison, and its figures if ``pdf``; return the paths of both."""
    from fedlab.comparison import files
    from fedlab.comparison.result import Comparison

    comparison = Comparison.read(path)
    files.write_files(comparison)
    return path.resolve() / "report.html", files.write_figures(comparison) if pdf else []


def _page_of_several(paths: list[Path], pdf: bool, out_dir: Path | None) -> tuple[Path, list[Path]]:
    """Write page and tables of several comparisons, and their figure if ``pdf``; return the paths of both."""
    from fedlab.comparison.across import files
    from fedlab.comparison.across.comparison_set import ComparisonSet

    found, folder = ComparisonSet.read(paths), out_dir or files.FOLDER
    page = files.write_files(found, folder)
    return page, files.write_figures(found, folder) if pdf else []
