"""Flower's programs as processes of ours: their environment, their family, their logs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlab.engines import processes
from waiting import wait_until


def test_an_excerpt_is_the_first_error_and_the_way_to_it(tmp_path: Path) -> None:
    log = tmp_path / "flower.log"
    log.write_text(
        "INFO : ControlServicer.ListRuns\n\x1b[91mTraceback\x1b[0m:\n  File a\n    ^^^\nmine.BadError: x\nKeyError: y\n"
    )
    assert processes.log_excerpt(log).splitlines() == [
        "First error:",
        "  Traceback:",
        "    File a",
        "  mine.BadError: x",
        f"Full log: {log}",
    ]
    log.write_text("one\n\ntwo\n")
    assert processes.log_excerpt(log).splitlines() == ["Last lines:", "  one", "  two", f"Full log: {log}"]


def test_family_is_the_marked_and_their_children() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], env={}, stdin=0)"
    environment = {**os.environ, processes.MARKER_ENV: "test-mark"}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE) as marked:
        wait_until(lambda: len(processes.marked_processes("test-mark")) == 2, "its child", process=marked)
        family = processes.marked_processes("test-mark")
        assert marked.pid in family
        assert any("input()" in command and "subprocess" not in command for command in family.values())
        assert processes.marked_processes("test-mar") == {}
        processes.stop("test-mark", [marked])
    assert processes.marked_processes("test-mark") == {}


def test_environment_finds_what_we_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    environment = processes.environment(tmp_path, {"RAY_ADDRESS": "local"})
    assert environment["PYTHONPATH"] == f"{Path.cwd()}{os.pathsep}/somewhere"
    assert environment["PATH"].split(os.pathsep)[1] == str(Path(sys.executable).parent)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "intranet,localhost,127.0.0.1"
    assert environment["RAY_ADDRESS"] == "local"
    assert environment["FLWR_HOME"].startswith(str(tmp_path))


def test_a_process_is_alive_until_it_has_been_waited_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert processes.is_alive(process.pid)
    process.communicate(b"\n")
    assert not processes.is_alive(process.pid)
