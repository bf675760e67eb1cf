"""The private SuperLink: its ports, and what it says about a failure."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from disks import full_disk
from fedlab.engines import processes, superlink
from fedlab.errors import RunError


def test_a_superlink_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"ended with code 1 at its start(.|\n)*ModuleNotFoundError"),
        superlink.superlink(tmp_path, environment={"PYTHONPATH": "", "PYTHONHOME": str(tmp_path)}),
    ):
        pass


def test_an_app_that_is_gone_before_the_end_of_its_output_is_seen_has_the_outcome_that_the_superlink_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, seen = threading.Event(), [{1: "flwr-serverapp"}]
    outcome = superlink.Outcome(True, "completed", "")
    control = SimpleNamespace(stream_logs=lambda run: iter(ended.wait, True), outcome=lambda run: outcome)
    link = SimpleNamespace(
        control=control,
        process=SimpleNamespace(poll=lambda: None),
        log=tmp_path / "log",
        environment={"FEDLAB_ENGINE": ""},
    )
    monkeypatch.setattr(superlink, "marked_processes", lambda marker: seen.pop() if seen else {})
    monkeypatch.setattr(superlink, "START_LIMIT", 0.0)  # long over, as in any run of some minutes
    superlink.follow(link, 1)  # type: ignore[arg-type]
    ended.set()


def test_a_run_that_a_full_disk_stops_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = ["Traceback ...\n", "fedlab.errors.RunError: the run stopped: no space left on device\n"]
    outcome = superlink.Outcome(False, "failed", "ServerApp failed with exception: the run stopped: no space")
    link = SimpleNamespace(
        control=SimpleNamespace(stream_logs=lambda run: iter(parts), outcome=lambda run: outcome),
        process=SimpleNamespace(poll=lambda: None),
        log=tmp_path / "log",
        environment={"FEDLAB_ENGINE": ""},
    )
    link.log.write_text("INFO: listening\n")
    with full_disk(), pytest.raises(RunError, match=r"^the run stopped: no space$"):
        superlink.follow(link, 1)  # type: ignore[arg-type]
    assert capfd.readouterr().err == ""


@pytest.mark.engine
def test_a_port_that_is_taken_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = superlink.free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answers = [[taken.getsockname()[1], free(1)[0]], free(2)]
        monkeypatch.setattr(superlink, "free_ports", lambda _: answers.pop(0))
        with superlink.superlink(tmp_path) as link:
            socket.create_connection(("127.0.0.1", int(link.fleet.rpartition(":")[2])), timeout=5).close()
    assert answers == []
    assert processes.marked_processes(link.environment[processes.MARKER_ENV]) == {}
    assert not link.scratch.exists()
