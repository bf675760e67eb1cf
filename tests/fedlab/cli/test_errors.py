"""Exceptions of commands become sentences and exit statuses, in one place; the log of a command."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedlab.cli.app import app
from fedlab.cli.errors import InterruptedWithAdvice, handle_errors
from fedlab.errors import FedlabError, RunError

FULL = OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl")
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


def ended(error, **options):
    """Exit status of a command that raises an error."""

    @handle_errors
    def command(as_json: bool = False):
        raise error

    with pytest.raises(typer.Exit) as end:
        command(**options)
    return end.value.exit_code


def fedlab(*arguments, output=subprocess.PIPE, **variables):
    """A `fedlab` command as a process."""
    command = [sys.executable, "-P", "-m", "fedlab", *arguments]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables})


def every_command():
    """Names of all commands, those of groups included."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from ([name, part] for part in command.commands) if hasattr(command, "commands") else [[name]]


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


@pytest.mark.parametrize("path", list(every_command()), ids=" ".join)
def test_every_command_has_the_options_of_the_log(path):
    said = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*path, "--help"]).output
    assert "--verbose" in said and "--log-file" in said


def test_verbose_and_log_file_show_times_and_tracebacks(tmp_path):
    log = tmp_path / "log.txt"
    ended = CliRunner().invoke(app, ["run", "nonesuch", "--verbose", "--log-file", str(log)])
    assert ended.exit_code == 1
    for text in (ended.stderr, log.read_text()):
        assert re.search(rf"^{TIME}INFO .*: fedlab .*, in {Path.cwd()}$", text, re.M)
        assert re.search(rf"^{TIME}ERROR .*unknown preset 'nonesuch'", text, re.M)
        assert "Traceback" in text
    assert ended.stderr.splitlines()[-1].startswith("error: unknown preset")
    assert CliRunner().invoke(app, ["list", "presets", "--log-file", str(log)]).exit_code == 0
    assert re.search(rf"^{TIME}INFO .*done$", log.read_text().splitlines()[-1])  # appended


def test_without_the_options_nothing_but_the_sentence_is_shown():
    ended = CliRunner().invoke(app, ["run", "nonesuch"])
    assert ended.stderr.startswith("error:") and len(ended.stderr.splitlines()) == 1


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path):
    ended = CliRunner().invoke(app, ["run", "nonesuch", "--log-file", str(tmp_path / "none" / "log.txt")])
    assert ended.exit_code == 1
    assert "--log-file" in ended.stderr and "nonesuch" not in ended.stderr


@pytest.mark.engine
def test_a_reader_that_goes_away_ends_a_command_in_silence():
    read, write = os.pipe()
    os.close(read)
    try:
        ended = fedlab("list", output=write)
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.engine
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_an_output_that_is_full_and_a_log_that_is_full_are_sentences():
    with open("/dev/full", "w") as full:
        ended = fedlab("list", "presets", output=full)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error:") and "no space left on device" in ended.stderr.lower()
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr
    ended = fedlab("list", "presets", "--log-file", "/dev/full")
    assert ended.returncode == 0 and "dualadapt-digits" in ended.stdout
    assert len(re.findall("has stopped", ended.stderr)) == 1 and "Traceback" not in ended.stderr
