"""Exceptions of commands become sentences and exit statuses, in one place."""

from __future__ import annotations

import errno
import io
import json
import sys

import pytest
import typer
from typer.testing import CliRunner

from fedlab.cli.app import app
from fedlab.cli.errors import InterruptedWithAdvice, handle_errors
from fedlab.errors import FedlabError, RunError

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")


def ended(error, **options):
    """Exit status of a command that raises an error."""

    @handle_errors
    def command(as_json: bool = False):
        raise error

    with pytest.raises(typer.Exit) as end:
        command(**options)
    return end.value.exit_code


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (RunError("three clients are gone"), 1, "error: three clients are gone"),
        (FULL, 1, "error: runs/a/metrics.jsonl: no space left on device; free some space, or choose another folder"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "error: x: permission denied; change its"),
        (OSError("the library gave no number"), 1, "error: the library gave no number"),
        (UnicodeDecodeError("utf-8", b"gr\xf6\xdfe", 2, 3, "invalid start byte"), 1, "not utf-8 text"),
        (UnicodeEncodeError("ascii", "größe", 2, 4, "ordinal not in range"), 1, "cannot be written as ascii"),
        (MemoryError(), 1, "the memory of this machine is full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (InterruptedWithAdvice("interrupted; `fedlab resume runs/a` goes on"), 130, "`fedlab resume runs/a` goes on"),
    ],
)
def test_an_error_is_a_sentence_and_a_status(error, status, sentence, capsys):
    assert ended(error) == status
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_a_defect_keeps_its_traceback():
    @handle_errors
    def command():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command()


def test_a_script_gets_every_kind_of_error_as_its_last_line(capsys):
    assert ended(FULL, as_json=True) == 1
    line = json.loads(capsys.readouterr().out)
    assert (line["event"], line["error"]) == ("error", "OSError") and "no space left" in line["message"]


def test_the_errors_of_fedlab_are_no_errors_of_python():
    """The order in which `outcome` asks does not matter."""
    assert not issubclass(FedlabError, OSError | UnicodeError | MemoryError | KeyboardInterrupt)


def test_a_character_that_the_terminal_lacks_is_shown_as_its_number(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))

    @handle_errors
    def command():
        print("gr\u00f6\u00dfe", "\udce9.png")  # a client, and the name of a file in Latin-1

    command()
    assert raw.getvalue() == b"gr\\xf6\\xdfe \\udce9.png\n"


def test_without_the_options_nothing_but_the_sentence_is_shown():
    ended = CliRunner().invoke(app, ["run", "nonesuch"])
    assert ended.stderr.startswith("error:") and len(ended.stderr.splitlines()) == 1
