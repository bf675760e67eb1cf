"""The command ``fedlab predict``: what images show, by the model of a client or of a run."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlab.cli.consoles import stdout
from fedlab.errors import ConfigError, DataError, plural

if TYPE_CHECKING:
    from fedlab.inference.predict import Prediction, Predictor


SHOWN = 5  # unreadable files that are named


def predict(
    directory: Annotated[
        Path, typer.Argument(metavar="DIRECTORY", help="What a client keeps (clients/NAME), or a run directory.")
    ],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Image files, folders, patterns.")],
    client: Annotated[str | None, typer.Option(help="Of a run: the client in whose place to predict.")] = None,
    server_round: Annotated[
        int | None, typer.Option("--round", help="Round of the checkpoint; the newest unless given.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values with a line of names.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each image, line by line.")] = False,
) -> None:
    """Predict the classes of images with the model that a client keeps or with a checkpoint of a run.

    Files that cannot be read are named in the end, with exit status 1; the others are predicted.

    Example: `fedlab predict clients/usps scans/ "more/*.png" --csv`
    """
    from fedlab.inference.predict import load_predictor

    if as_csv and as_json:
        raise ConfigError("--csv and --json exclude each other; take one")
    predictor = load_predictor(directory, client, server_round)
    unreadable: list[str] = []
    predictions = predictor.predict(images, unreadable)
    if as_json:
        sys.stdout.writelines(json.dumps(prediction.row()) + "\n" for prediction in predictions)
    elif as_csv:
        rows = [prediction.row() for prediction in predictions]
        names = ["file", "class", "probability", "second", "second_probability"]
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    elif predictions:
        _show(predictor, predictions)
    if unreadable:
        more = f"; and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
        counts = f"{len(unreadable)} of {plural(len(unreadable) + len(predictions), 'file')} cannot be used"
        raise DataError(f"{counts}: {'; '.join(unreadable[:SHOWN])}{more}")


def _show(predictor: Predictor, predictions: list[Prediction]) -> None:
    """A table with a line for each image."""
    from rich.markup import escape
    from rich.table import Table

    count = plural(len(predictions), "image")
    title = f"{count}, by the model of client {predictor.client} after round {predictor.round}"
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("file", overflow="fold")
    for name in ("class", "probability", "second", "probability"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in predictions:
        row = one.row()
        best, second = f"{100 * one.probability:.1f} %", f"{100 * one.second_probability:.1f} %"
        table.add_row(
            escape(str(one.file)), f"[bold]{escape(str(row['class']))}[/]", best, escape(str(row["second"])), second
        )
    stdout.print(table)
