"""The command line called in this process, as its tests do."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from fedlab.cli.app import app


def call(*arguments: object, code: int = 0) -> Result:
    """Return what a command printed, and how it ended; it has to end with this code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result
