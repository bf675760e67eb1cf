"""Nothing is imported that a run does not use, and a user's own files of common names harm nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import FEDLAB, TINY, Command
from fedlab.runs.result import Result
from strangers import OURS, put_all, put_files

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


@pytest.fixture
def strange(tmp_path) -> Path:
    """A folder of files that have the names of ours."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    return put_files(tmp_path, OURS)


@pytest.fixture
def stranger(tmp_path) -> Path:
    """A folder of files that have the names of ours, of what we import, and of Python's own modules."""
    return put_all(tmp_path)


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
def test_a_script_beside_a_users_files_of_our_names_runs(strange):
    python(strange, "mine.py", "ray", json.dumps(TINY))
    manifest = json.loads((strange / "runs/dualadapt-digits-0/manifest.json").read_text())
    assert manifest["status"] == "finished"


@pytest.mark.engine
def test_the_workers_of_a_comparison_do_not_see_a_users_files(stranger):
    chosen = ("--strategies", "source_only,dualadapt", "--seeds", "1", "--jobs", "2", "--quiet")
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
def test_the_processes_of_every_engine_give_the_same_bits_and_do_not_see_a_users_files(stranger):
    found = []
    for engine in ("inprocess", "pool", "ray"):
        chosen = [f"{name}={value}" for name, value in {**TINY, "rounds": 2, "name": engine}.items()]
        command = Command(stranger, "run", "dualadapt-digits", *chosen, "--engine", engine, "--quiet")
        assert command.code() == 0, command.said
        found.append(Result.read(stranger / "runs" / f"{engine}-0"))
    first = found[0]
    for other in found[1:]:
        assert other.weights_sha256 == first.weights_sha256
        assert other.final() == first.final()
        assert [record["bytes"] for record in other.rounds] == [record["bytes"] for record in first.rounds]
