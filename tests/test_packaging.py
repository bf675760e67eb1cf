"""What ships: Flower's run config, the app references, the size of the embedded data, pinned versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from flwr.supercore import object_ref

from commands import TINY
from fedlab.data.digits.datasets import EMBEDDED
from fedlab.launch import APPS
from fedlab.registry import app_config, config_from_text

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_what_flwr_run_runs_is_two_keys_that_resolve():
    written = PYPROJECT["tool"]["flwr"]["app"]["config"]
    assert written == {"preset": "dualadapt-digits", "overrides": ""}
    assert config_from_text(*app_config(written)).run.name == "dualadapt-digits"
    assert config_from_text(*app_config({**written, "overrides": "rounds = 3\ndata.alpha = 0.1"})).run.rounds == 3


def test_flower_finds_the_apps():
    components = PYPROJECT["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": APPS.server, "clientapp": APPS.client}
    for reference in components.values():
        valid, reason = object_ref.validate(reference, check_module=True)
        assert valid, reason


def test_the_embedded_data_fits_into_seventeen_megabytes():
    """Digits and characters 10.6, PACS 2.8, CamVid 1.9, Office-Caltech10 0.3: real domains run without a download."""
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 17_000_000


def test_constraints_pin_versions_and_name_no_place():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    needed = [re.split(r"[ \[<>=!;]", wanted)[0] for wanted in metadata.requires("fedlab-adapt") or []]
    assert {name.lower().replace("_", "-") for name in needed} <= pinned


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the files that git knows, built without network in a folder of its own."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    built = subprocess.run(command, cwd=folder / "source", capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.engine
def test_the_wheel_installs_one_name_and_all_that_it_needs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {
        "fedlab",
        f"fedlab_adapt-{metadata.version('fedlab-adapt')}.dist-info",
    }
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    shipped = {name for name in tracked.splitlines() if re.match("(fedlab|server|client|strategies)/", name)}
    ours = {name if name.startswith("fedlab/") else f"fedlab/{name}" for name in shipped}
    assert ours - names == {"fedlab/server", "fedlab/client", "fedlab/strategies"}  # the links themselves


@pytest.mark.engine
def test_what_is_installed_from_the_wheel_runs_in_an_empty_folder(wheel, tmp_path):
    """Beside it lies all that is installed here, except this working tree."""
    venv.create(tmp_path / "venv", with_pip=False)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(packages)
    others = [path for path in sys.path if path.endswith("-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    (tmp_path / "empty").mkdir()
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def fedlab(*arguments: str) -> str:
        command = [str(tmp_path / "venv/bin/python"), "-m", "fedlab", *arguments]
        ran = subprocess.run(command, cwd=tmp_path / "empty", env=variables, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "dualadapt-digits" in fedlab("list")
    where = [str(tmp_path / "venv/bin/python"), "-c", "import fedlab.server.app as app; print(app.__file__)"]
    found = subprocess.run(where, cwd=tmp_path / "empty", env=variables, capture_output=True, text=True).stdout.strip()
    assert found == str(packages / "fedlab/server/app.py")
    fedlab("run", "dualadapt-digits", *(f"{name}={value}" for name, value in TINY.items()), "--quiet")
    assert (tmp_path / "empty/runs/dualadapt-digits-0/report.html").is_file()
