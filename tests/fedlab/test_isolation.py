"""Nothing is imported that a run does not use, and a user's own files of common names harm nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from commands import FEDLAB, TINY, Command, end
from fedlab.engines import processes

OPTIONS = [f"{name}={value}" for name, value in TINY.items()]
HEAVY = ("torch", "rdkit", "matplotlib", "pandas", "scipy", "sklearn", "flwr", "ray")
COMMAND = f"""
import json, sys
from fedlab.cli.app import main
try:
    main()
finally:
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]), file=sys.stderr)
"""
BEFORE_REPORT = """
import json, sys
import fedlab
from fedlab.runs.result import Result

read = Result.read

def finished(path):
    print(json.dumps(sorted({"rdkit", "matplotlib", "pandas", "sklearn"} & sys.modules.keys())))
    return read(path)

Result.read = finished
fedlab.run("dualadapt-digits", overrides=json.loads(sys.argv[1]))
"""
NO_DRAWING = """
import sys

class NoDrawing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("rdkit.Chem.Draw"):
            raise ImportError("libXrender.so.1: cannot open shared object file: No such file or directory")

sys.meta_path.insert(0, NoDrawing())
"""
SCRIPT = """
import json, sys
import fedlab

if __name__ == "__main__":
    fedlab.run("dualadapt-digits", engine=sys.argv[1], overrides=json.loads(sys.argv[2]))
"""


def python(folder: Path, *arguments: str) -> str:
    """What a Python process in a folder prints, the last line of its errors where it prints nothing."""
    ran = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


OURS = ("server", "client", "strategies/__init__", "strategies/base", "workload", "registry", "training")
PYTHONS = ("random", "statistics", "queue", "secrets", "profile", "signal", "types", "typing", "logging", "winreg")


def put_files(folder: Path, names: Iterable[str]) -> Path:
    """Put a user's own files into a folder, which say so when they are imported."""
    (folder / "strategies").mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user\\'s own {name} was imported')\n")
    (folder / "mine.py").write_text(SCRIPT)
    return folder


@pytest.fixture
def strange(tmp_path) -> Path:
    """A folder of files that have the names of ours."""
    return put_files(tmp_path, OURS)


@pytest.fixture
def stranger(tmp_path) -> Path:
    """A folder of files that have the names of ours and of Python's own modules."""
    return put_files(tmp_path, (*OURS, *PYTHONS))


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"], ["compare", "--help"]])
def test_help_and_list_import_nothing_heavy(arguments, tmp_path):
    ran = subprocess.run([sys.executable, "-c", COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(ran.stderr.splitlines()[-1]) == []


def test_the_apps_and_the_command_do_not_see_a_users_files_of_their_names(strange):
    python(strange, "-c", "import fedlab, fedlab.server.app, fedlab.client.app, fedlab.strategies.fedavg; fedlab.run")
    for before in ([FEDLAB], [sys.executable, "-m", "fedlab"]):
        ran = subprocess.run([*before, "list"], cwd=strange, capture_output=True, text=True)
        assert ran.returncode == 0 and "dualadapt-digits" in ran.stdout, ran.stderr


@pytest.mark.engine
def test_a_run_of_digits_imports_no_drawing_and_no_chemistry_before_its_report(tmp_path):
    first, *_ = python(tmp_path, "-c", BEFORE_REPORT, json.dumps(TINY)).splitlines()  # as the run has ended
    assert json.loads(first) == []


@pytest.mark.engine
def test_a_run_of_digits_ends_where_rdkit_cannot_draw(tmp_path):
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(NO_DRAWING)
    path = ":".join([str(tmp_path / "hook"), *(entry for entry in sys.path if entry)])
    check = subprocess.run(
        [sys.executable, "-c", "import rdkit.Chem.Draw"], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert "libXrender" in check.stderr
    command = Command(tmp_path, "run", "dualadapt-digits", *OPTIONS, "--quiet", PYTHONPATH=path)
    assert command.code() == 0, command.said
    assert (tmp_path / "runs/dualadapt-digits-0/report.html").is_file()


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["inprocess", "ray"])
def test_a_script_beside_a_users_files_of_our_names_runs(strange, engine):
    python(strange, "mine.py", engine, json.dumps(TINY))
    manifest = json.loads((strange / "runs/dualadapt-digits-0/manifest.json").read_text())
    assert manifest["status"] == "finished"


@pytest.mark.engine
def test_the_workers_of_a_comparison_do_not_see_a_users_files(stranger):
    chosen = ("--strategies", "source_only,fedavg", "--seeds", "1", "--jobs", "2", "--quiet")
    command = Command(stranger, "compare", "dualadapt-digits", *OPTIONS, *chosen)
    assert command.code() == 0, command.said


@pytest.mark.parametrize("arguments", [["run", "graphnvp-qm9"], ["molecules", "runs/none"]])
def test_a_machine_without_rdkits_libraries_is_told_what_to_do(tmp_path, arguments):
    (tmp_path / "rdkit").mkdir()
    lacking = "libXrender.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "rdkit" / "__init__.py").write_text(f"raise ImportError({lacking!r})")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "fedlab", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "libXrender.so.1" in done.stderr and "`fedlab doctor` names what the system lacks" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.engine
@pytest.mark.parametrize("engine", ["inprocess", "pool", "ray"])
def test_the_processes_of_a_run_do_not_see_a_users_files(stranger, engine):
    command = Command(stranger, "run", "dualadapt-digits", *OPTIONS, "--engine", engine, "--quiet")
    assert command.code() == 0, command.said


@pytest.mark.engine
def test_server_and_clients_of_a_deployment_do_not_see_a_users_files(stranger):
    address = f"127.0.0.1:{processes.free_ports(1)[0]}"
    serve = Command(stranger, "serve", "dualadapt-digits", *OPTIONS, "--insecure", "--address", address)
    join = ("join", address, "--insecure", "--once", "--domain")
    commands = [serve, *(Command(stranger, *join, name) for name in ("optdigits", "usps"))]
    try:
        assert [command.code() for command in commands] == [0, 0, 0], [command.said for command in commands]
    finally:
        end(commands)
