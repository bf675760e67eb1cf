"""The unit of a client's service: systemd accepts it, and its command is one that fedlab has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from click.testing import CliRunner

from fedlab.cli.app import app

UNIT = Path(__file__).parents[1] / "examples" / "systemd" / "fedlab-client@.service"


def command():
    line = next(line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart="))
    return shlex.split(line.partition("=")[2])


def test_its_command_has_only_options_of_join():
    program, name, address, *options = command()
    assert (Path(program).name, name, address) == ("fedlab", "join", "${FEDLAB_SERVER}")
    told = CliRunner().invoke(typer.main.get_command(app), ["join", "--help"], env={"COLUMNS": "200"})
    known = set(re.findall(r"--[a-z-]+", told.output))
    assert {word for word in options if word.startswith("--")} <= known


def test_it_keeps_secrets_and_state_to_its_user():
    text = UNIT.read_text()
    for line in ("User=fedlab", "UMask=0077", "StateDirectoryMode=0700", "NoNewPrivileges=yes", "ProtectSystem=strict"):
        assert f"\n{line}\n" in text
    assert "--insecure" not in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_accepts_it(tmp_path):
    text = UNIT.read_text().replace("/opt/fedlab/bin/fedlab", "/bin/true")
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.M))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
