"""`fedlab join` as a process: what it says, how it ends, and that nothing outlives it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedlab.deploy import provision
from fedlab.deploy.client import CONNECTED_FILE, disconnect_reason
from fedlab.engines import processes
from fedlab.engines.superlink import Fleet, superlink
from waiting import wait_until

pytestmark = pytest.mark.engine

FEDLAB = str(Path(sys.executable).with_name("fedlab"))


@pytest.fixture
def join(tmp_path):
    """Starts `fedlab join`; what it says is in the file ``.log`` of the process."""
    started = []

    def start(*arguments):
        log = tmp_path / f"join-{len(started)}.out"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [FEDLAB, "join", *arguments], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        process.log = log
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(process, words, times=1, seconds=60):
    wait_until(
        lambda: said(process).count(words) >= times, repr(words), seconds, process=process, output=lambda: said(process)
    )


def said(process):
    return process.log.read_text()


def supernodes(state_dir):
    """Processes of Flower that belong to the client of a directory."""
    found = {}
    for entry in processes.PROC.iterdir():
        with suppress(OSError):
            if str(state_dir) in os.readlink(entry / "fd" / "1"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def nobody():
    return f"127.0.0.1:{processes.free_ports(1)[0]}"


def test_without_its_files(join):
    process = join(nobody(), "--domain", "usps")
    assert process.wait(30) == 1
    assert "ca.crt cannot be read: No such file or directory" in " ".join(said(process).split())


def test_waits_for_a_server_and_leaves_when_it_is_told_to(join, tmp_path):
    process = join(nobody(), "--domain", "usps", "--insecure")
    until(process, "yet (Connection refused); trying until it is there")
    second = join(nobody(), "--domain", "usps", "--insecure")
    assert second.wait(30) == 1
    assert "in use by another process; stop the other `fedlab join`" in " ".join(said(second).split())
    process.terminate()
    assert process.wait(10) == 0
    lines = said(process).splitlines()
    assert lines[0].startswith("warning: --insecure: plain text")
    assert lines[-1] == f"usps has left; its state is in {tmp_path / 'clients' / 'usps'}"


def test_it_gives_up_after_a_while(join):
    process = join(nobody(), "--domain", "usps", "--insecure", "--give-up-after", "0.5")
    assert process.wait(30) == 1
    assert "error: no server at 127.0.0.1:" in said(process)
    assert "within 0.5 s (Connection refused)" in said(process)


def test_a_supernode_that_dies_is_started_again_and_none_outlives_us(join, tmp_path):
    provision.create_credentials(tmp_path / "server", clients=["usps"])
    (tmp_path / "certs" / "clients").mkdir(parents=True)
    shutil.copy(tmp_path / "server" / "ca.crt", tmp_path / "certs")
    shutil.copy(tmp_path / "server" / "clients" / "usps.key", tmp_path / "certs" / "clients")
    state_dir = tmp_path / "clients" / "usps"
    with superlink(tmp_path / "link", fleet=Fleet(nobody(), None)) as link:
        process = join(link.fleet, "--domain", "usps", "--insecure")
        until(process, "connected to")
        pid = min(pid for pid, command in supernodes(state_dir).items() if "--superlink" in command)  # others: forks
        os.kill(pid, signal.SIGKILL)
        until(process, "the SuperNode ended unexpectedly; starting another")
        until(process, "connected to", times=2)
        mistaken = join(link.fleet, "--state-dir", "other")  # with TLS, and the only key there is
        assert mistaken.wait(30) == 1
        assert "does not speak TLS" in said(mistaken)
        assert disconnect_reason(state_dir) == ""
        link.process.kill()
        until(process, "went away; trying until it is back")
        seen = (state_dir / CONNECTED_FILE).stat().st_mtime
        time.sleep(1)
        assert (state_dir / CONNECTED_FILE).stat().st_mtime == seen  # so that it soon counts as not connected
        process.kill()
        wait_until(lambda: supernodes(state_dir) == {}, "the end of its processes", 15)
