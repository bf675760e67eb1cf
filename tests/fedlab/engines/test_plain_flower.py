"""The commands of docs/how-to/deployment.md, "Flower's own commands", typed as they are printed there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from commands import TINY
from fedlab.deploy import provision
from fedlab.engines import processes
from fedlab.files import read_lines
from waiting import wait_until

ROOT = Path(__file__).parents[3]
TIMEOUT = 180
NAME = 'name = "plain"\n'
EXTRA = "".join(f"{name} = {value}\n" for name, value in TINY.items() if name != "digits.targets")


def blocks():
    """The section's shell blocks, in their order."""
    page = (ROOT / "docs" / "how-to" / "deployment.md").read_text(encoding="utf-8")
    section = page.split("## Flower's own commands\n")[1].split("\n## ")[0]
    return re.findall(r"```bash\n(.*?)```", section, re.S)


@pytest.fixture
def terminal(tmp_path):
    """Types a block in a shell of its own; ports are free ones, and the run is a tiny one."""
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("server", "client"):
        shutil.copytree(ROOT / name, tmp_path / name)
    provision.create_credentials(tmp_path / "certs", clients=["usps", "optdigits"])
    ports = dict(zip(("9092", "8000", "8001", "8002"), map(str, processes.free_ports(4)), strict=True))
    bin = str(Path(sys.executable).parent)
    variables = {**os.environ, "PATH": os.pathsep.join((bin, os.environ["PATH"])), "FLWR_HOME": str(tmp_path / ".flwr")}
    variables |= dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1")
    shells = []

    def typed(block):
        for port, free in ports.items():
            block = block.replace(port, free)
        block = block.replace("flower-superlink ", f"flower-superlink --port {ports['8000']} ")  # 8000 is its default
        block = block.replace(NAME, NAME + EXTRA)
        log = tmp_path / f"{len(shells)}.log"
        with log.open("wb") as output:
            shell = subprocess.Popen(
                ["bash", "-ec", block],
                cwd=tmp_path,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        shells.append(shell)
        return shell, log

    yield typed
    for shell in reversed(shells):
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


def until(condition, shell, log):
    wait_until(condition, "a line", TIMEOUT, process=shell, output=log.read_text)


@pytest.mark.engine
def test_the_commands_of_the_docs_page_work_as_printed(terminal, tmp_path):
    configure, superlink, register, *supernodes, run = blocks()
    assert NAME in run
    assert terminal(configure)[0].wait(30) == 0
    server, log = terminal(superlink)
    until(lambda: "Uvicorn running on https" in processes.read_plain(log), server, log)
    shell, said = terminal(register)
    assert shell.wait(TIMEOUT) == 0
    assert said.read_text().count("registered successfully") == 2
    clients = [terminal(block) for block in supernodes]
    for shell, said in clients:
        until(lambda said=said: "SuperNode ID" in processes.read_plain(said), shell, said)
    submitted, said = terminal(run)
    metrics = tmp_path / "runs" / "plain-0" / "metrics.jsonl"
    until(lambda: read_lines(metrics), submitted, said)  # a round is enough: what the rest takes, other tests spend
    assert set(read_lines(metrics)[0]["clients"]) == {"usps", "optdigits"}
    assert "Successfully started run" in said.read_text()
    assert (tmp_path / "clients" / "usps" / "model.pt").exists()
