"""Forks in place of a command's processes: the same output, exit code, environment and death."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedlab.engines import flower_programs, programs
from fedlab.engines.flower_limits import ForeignBundle
from fedlab.engines.spec import load_reference
from waiting import wait_until

pytestmark = pytest.mark.engine

APP = """
import os, sys, time
born = os.getpid()

def ask():
    print("how are you?", os.path.basename(sys.argv[0]), born, flush=True)

def main():
    print(sys.argv[1:], os.environ["COLOR"], os.getcwd(), born, os.getpid(), flush=True)
    if sys.argv[1] == "wait":
        time.sleep(60)
    if sys.argv[1] == "raise":
        raise OSError("the disk is gone")
    sys.exit(int(sys.argv[1]))
"""


OWNER = """
import os, sys
from pathlib import Path
from fedlab.engines import fork_server

before = os.environ["PATH"]
with fork_server.fork_server(Path(sys.argv[1]), {"greet": "greeting:main", "ask": "greeting:ask"}, ["json"]):
    print(os.environ["PATH"], flush=True)
    sys.stdin.read()
assert os.environ["PATH"] == before
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Starts the command ``greet``, which a fork server serves.

    The fork server is a fork of a process of its own: this one may have threads.
    """
    (tmp_path / "greeting.py").write_text(APP)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *map(os.path.abspath, sys.path)]))
    monkeypatch.setenv("COLOR", "of the fork server")

    with ExitStack() as pipes:

        def start(*arguments, command="greet"):
            environment = {**os.environ, "COLOR": "blue", "PATH": path}
            command = [command, *arguments]
            process = subprocess.Popen(command, stdout=-1, stderr=-2, text=True, cwd=tmp_path, env=environment)
            return pipes.enter_context(process)

        command = [sys.executable, "-c", OWNER, str(tmp_path)]
        owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        path = owner.stdout.readline().strip()
        assert path.startswith(str(tmp_path / "commands"))
        yield start
        owner.communicate(timeout=60)
        assert owner.returncode == 0


def gone(pid):
    """Whether a process has ended."""
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_a_fork_has_the_callers_arguments_environment_folder_output_and_exit_code(call, tmp_path):
    said, codes = [], []
    for code in ("0", "3", "255"):
        process = call(code, "it's")
        said.append(process.communicate(timeout=60)[0].split())
        codes.append(process.returncode)
    assert codes == [0, 3, 255]
    assert [line[:4] for line in said] == [[f"['{code}',", '"it\'s"]', "blue", str(tmp_path)] for code in (0, 3, 255)]
    assert len({line[4] for line in said}) == 1  # imported once
    assert len({line[5] for line in said}) == 3


def test_each_command_has_an_entry_of_its_own(call):
    asked = call(command="ask").communicate(timeout=60)[0].split()
    greeted = call("0").communicate(timeout=60)[0].split()
    assert asked[:4] == ["how", "are", "you?", "ask"]
    assert asked[4] == greeted[3]  # of one fork server


def test_what_is_raised_is_printed_and_the_fork_server_lives_on(call):
    process = call("raise")
    assert "OSError: the disk is gone" in process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert call("0").wait(60) == 0


def test_forks_work_side_by_side_and_die_with_the_command(call):
    waiting = [call("wait"), call("wait")]
    pids = [int(process.stdout.readline().split()[-1]) for process in waiting]
    assert not any(map(gone, pids))
    waiting[0].kill()
    waiting[0].wait()
    wait_until(lambda: gone(pids[0]), "the end of its fork", 20)
    assert not gone(pids[1])
    os.kill(pids[1], signal.SIGKILL)  # and the command with the fork
    assert waiting[1].wait(20) == 1


def test_without_a_fork_server_a_command_calls_the_same_function_in_a_process_of_its_own(call, tmp_path):
    waiting = call("wait")
    fork = int(waiting.stdout.readline().split()[-1])
    server = int(Path(f"/proc/{fork}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    os.kill(fork, signal.SIGKILL)
    process = call("3", "it's")
    said = process.communicate(timeout=60)[0].split()
    assert process.returncode == 3 and said[:4] == ["['3',", '"it\'s"]', "blue", str(tmp_path)]
    assert said[4] == said[5] == str(process.pid)  # imported there


def test_the_client_s_command_checks_the_bundle_wherever_it_is_called(monkeypatch, capfd):
    run_clientapp, ran = importlib.import_module("flwr.supernode.runtime.run_clientapp"), []
    monkeypatch.setattr(run_clientapp, "install_from_fab", run_clientapp.install_from_fab)
    monkeypatch.setattr(
        "flwr.supernode.cli.flwr_clientapp", lambda: ran.append(run_clientapp.install_from_fab(b"a bundle"))
    )
    for entry in programs.CLIENT.values():
        with pytest.raises(ForeignBundle):
            load_reference(entry)()
    assert programs.CLIENT.keys() == flower_programs.CLIENT_APP.keys() and not ran
    assert "refused: the server sent a bundle" in capfd.readouterr().err
