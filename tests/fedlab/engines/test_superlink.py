"""The private SuperLink: its ports, and what it says about a failure."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from fedlab.engines import processes, superlink
from fedlab.errors import RunError


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
    assert processes.marked_processes(link.environment[processes.MARKER_ENV]) == {}
    assert not link.scratch.exists()
