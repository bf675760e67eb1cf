"""What ships: Flower's run config, the app references, the size of the embedded data, pinned versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from flwr.supercore import object_ref
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert closure("fedlab-adapt", ("dev", "docs", "backbones")) - {"fedlab-adapt"} <= pinned


def closure(name: str, extras: Iterable[str]) -> set[str]:
    """Return a distribution and all that it asks for on this machine, as far as it is installed."""
    found: dict[tuple[str, frozenset[str]], None] = {}
    waiting = [(name, frozenset(extras))]
    while waiting:
        one, chosen = waiting.pop()
        if (canonicalize_name(one), chosen) in found:
            continue
        found[canonicalize_name(one), chosen] = None
        try:
            needed = [Requirement(line) for line in metadata.requires(one) or []]
        except metadata.PackageNotFoundError:
            continue  # of another platform's, or an extra that this environment lacks
        waiting += [
            (wanted.name, frozenset(wanted.extras))
            for wanted in needed
            if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in (chosen or {""}))
        ]
    return {one for one, _ in found}


def test_one_place_says_the_version():
    version = PYPROJECT["project"]["version"]
    assert metadata.version("fedlab-adapt") == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the sdist of the files that git knows, built as `python -m build` does, without network."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    for kind, place in (("sdist", folder / "source"), ("wheel", folder / "unpacked")):
        build = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        command = [sys.executable, "-W", "error::DeprecationWarning", "-c", build, str(folder)]
        built = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        if kind == "sdist":
            (archive,) = folder.glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            archive.with_name(archive.name.removesuffix(".tar.gz")).rename(folder / "unpacked")
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.engine
def test_the_metadata_are_those_that_an_index_takes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        found = Metadata.from_email(archive.read(name), validate=True)
    assert (found.name, found.license_expression) == ("fedlab-adapt", "Apache-2.0")
    assert found.description_content_type == "text/markdown" and found.description.startswith("# fedlab")
    targets = re.findall(r"\]\(([^)]*)\)", found.description)
    assert targets and all(target.startswith("https://") for target in targets)  # an index has no files beside it
    assert "Deploy real clients (`docs/how-to/deployment.md`) explains" in found.description
    sections = [
        re.findall("^## .+$", text, re.MULTILINE) for text in (found.description, (ROOT / "README.md").read_text())
    ]
    assert sections[0] == sections[1]


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
