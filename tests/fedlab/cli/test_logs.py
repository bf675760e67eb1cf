"""`--verbose` and `--log-file`: the same lines on the terminal and in a file, and what becomes of either."""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fedlab.cli.app import app
from fedlab.cli.logs import is_logging, log, logging_to

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


def every_command():
    """Names of all commands, those of groups included."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        yield from ([name, part] for part in command.commands) if hasattr(command, "commands") else [[name]]


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


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path):
    ended = CliRunner().invoke(app, ["run", "nonesuch", "--log-file", str(tmp_path / "none" / "log.txt")])
    assert ended.exit_code == 1
    assert "--log-file" in ended.stderr and "nonesuch" not in ended.stderr


def test_a_log_is_there_while_the_context_lasts_and_a_file_goes_on(tmp_path):
    level, handlers = log.level, list(log.handlers)
    for number in range(2):
        with logging_to(False, tmp_path / "log.txt"):
            assert is_logging()
            log.info("round %d", number)
        assert (log.level, log.handlers) == (level, handlers)
    assert [line.rpartition(": ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "round 0",
        "round 1",
    ]
    with logging_to(False, None):
        assert log.level == level


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_log_whose_disk_is_full_stops_once_and_nothing_else(capsys):
    with logging_to(False, Path("/dev/full")):
        for number in range(3):
            log.info("round %d", number)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("the log /dev/full has stopped") == 1 and "no space left" in said


def test_a_terminal_that_is_gone_stops_no_log(monkeypatch, tmp_path):
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stderr", gone)
    with logging_to(True, tmp_path / "log.txt"):
        log.info("still here")
    assert "still here" in (tmp_path / "log.txt").read_text()
