"""The command ``fedlab``: its groups of commands, each in a module of its own.

What a command needs beside its own arguments is imported when it runs: `--help` and `list` start no torch.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from fedlab.cli import catalog, compare, deploy, flower, molecules, new, predict, report, run
from fedlab.cli.consoles import stdout
from fedlab.cli.errors import handle_errors
from fedlab.startup import quick_exit

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Federations whose server owns labeled source data and whose clients own unlabeled targets."
    "\n\nStart with `fedlab run dualadapt-digits`.",
)


def _version(asked: bool) -> None:
    if asked:
        from fedlab.runs.manifest import versions

        stdout.print("\n".join(f"{name} {version}" for name, version in versions().items()), highlight=False)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Versions of fedlab and what it uses.")
    ] = False,
) -> None:
    """Options that stand before a command; the app's own help says what it is."""


app.command("list")(handle_errors(catalog.list_))
app.command()(handle_errors(run.run))
app.command()(handle_errors(run.resume))
app.command()(handle_errors(flower.flower))
app.command()(handle_errors(report.report))
app.command()(handle_errors(report.runs))
app.command()(handle_errors(report.export))
app.command(help=compare.HELP)(handle_errors(compare.compare))
app.command()(handle_errors(predict.predict))
app.command()(handle_errors(deploy.serve))
app.command()(handle_errors(deploy.join))
app.command()(handle_errors(deploy.certs))
app.command()(handle_errors(deploy.ping))
app.command()(handle_errors(deploy.client_status))
app.command()(handle_errors(molecules.molecules))
app.command()(handle_errors(new.new))
app.command()(handle_errors(catalog.doctor))
app.add_typer(catalog.data_app, name="data")


def main() -> None:
    """Entry point of the ``fedlab`` command."""
    quick_exit()
    replace_unprintable(sys.stdout, sys.stderr)
    app()


def replace_unprintable(*streams: object) -> None:
    """Let text streams write an escape for a character that their encoding lacks, instead of raising.

    A name that a terminal cannot show must not cost the work that is being printed.
    """
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
