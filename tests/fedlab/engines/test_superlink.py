"""The private SuperLink: its ports, its environment, what it says about a failure."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedlab.engines import superlink
from fedlab.errors import RunError


def test_evidence_is_the_first_error_and_the_way_to_it(tmp_path: Path) -> None:
    log = tmp_path / "flower.log"
    log.write_text(
        "INFO : ControlServicer.ListRuns\n\x1b[91mTraceback\x1b[0m:\n  File a\n    ^^^\nmine.BadError: x\nKeyError: y\n"
    )
    assert superlink.evidence(log).splitlines() == [
        "First error:",
        "  Traceback:",
        "    File a",
        "  mine.BadError: x",
        f"Full log: {log}",
    ]
    log.write_text("one\n\ntwo\n")
    assert superlink.evidence(log).splitlines() == ["Last lines:", "  one", "  two", f"Full log: {log}"]


def test_family_is_the_marked_and_their_children() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], env={}, stdin=0)"
    environment = {**os.environ, superlink.MARK: "test-mark"}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE) as marked:
        while len(superlink.family("test-mark")) < 2:
            assert marked.poll() is None
        family = superlink.family("test-mark")
        assert marked.pid in family
        assert any("input()" in command and "subprocess" not in command for command in family.values())
        assert superlink.family("test-mar") == {}
        superlink._stop("test-mark", [marked])
    assert superlink.family("test-mark") == {}


def test_environment_finds_what_we_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    environment = superlink._environment(tmp_path, {"RAY_ADDRESS": "local"})
    assert environment["PYTHONPATH"] == f"{Path.cwd()}{os.pathsep}/somewhere"
    assert environment["PATH"].split(os.pathsep)[1] == str(Path(sys.executable).parent)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "intranet,127.0.0.1"
    assert environment["RAY_ADDRESS"] == "local"
    assert environment["FLWR_HOME"].startswith(str(tmp_path))


def test_a_superlink_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"ended with code 1 at its start(.|\n)*ModuleNotFoundError"),
        superlink.superlink(tmp_path, simulation=True, environment={"PYTHONPATH": "", "PYTHONHOME": str(tmp_path)}),
    ):
        pass


@pytest.mark.engine
def test_a_port_that_is_taken_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = superlink.free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answers = [[taken.getsockname()[1], free(1)[0]], free(2)]
        monkeypatch.setattr(superlink, "free_ports", lambda _: answers.pop(0))
        with superlink.superlink(
            tmp_path, simulation=False
        ) as link:  # with SuperNodes, as the gRPC engine will have it
            socket.create_connection(("127.0.0.1", int(link.fleet.rpartition(":")[2])), timeout=5).close()
    assert answers == []
    assert superlink.family(link.environment[superlink.MARK]) == {}
    assert not link.scratch.exists()
