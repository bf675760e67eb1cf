"""Streams of the command line: warnings and errors beside the output, and readers and disks that are gone."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest

from fedlab.cli import consoles


def fedlab(*arguments, output=subprocess.PIPE, **variables):
    """A `fedlab` command as a process."""
    command = [sys.executable, "-P", "-m", "fedlab", *arguments]
    return subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables})


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


def test_warnings_and_errors_are_beside_the_output_and_never_markup(capsys):
    consoles.warn("a [b] in /a/folder")
    consoles.show_error("no [c]")
    consoles.write_line("plain [d]")
    out, err = capsys.readouterr()
    assert out == "plain [d]\n"
    assert err == "warning: a [b] in /a/folder\nerror: no [c]\n"


def test_progress_that_nobody_reads_ends_no_work(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    consoles.write_line("round 1")  # the command's last flush gives the status


def test_a_reader_that_has_gone_is_the_command_s_to_answer():
    """Rich alone would end the program."""

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    console = type(consoles.stdout)(file=Gone())
    with pytest.raises(BrokenPipeError):
        console.print("x")
