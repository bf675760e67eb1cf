"""Packages for a machine without a package index: which they are, and what is cut off them."""

from __future__ import annotations

import subprocess
import sys
import tarfile

import pytest

from scripts import offline_packages
from scripts.offline_packages import TORCH, UNUSED, keep_imported_extensions, needed, pack

RUN_WITHOUT = """
import sys
from importlib.abc import MetaPathFinder
from importlib.metadata import packages_distributions
from packaging.utils import canonicalize_name

class Missing(MetaPathFinder):
    def __init__(self, packages):
        owners = packages_distributions().items()
        self.names = {name for name, its in owners if {canonicalize_name(one) for one in its} <= packages}

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing(set(sys.argv[2:])))
import benchmarks.gpu.__main__
from benchmarks.gpu import right

right.cases()  # imports all strategies
assert right.final_weights("strategy fedavg", "cpu")[0]
"""


def run_without(packages: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one tiny round in a process in which these packages cannot be imported."""
    return subprocess.run([sys.executable, "-c", RUN_WITHOUT, "-", *packages], capture_output=True, text=True)


def test_a_run_needs_none_of_the_packages_that_are_not_packed():
    ended = run_without([*UNUSED])
    assert not ended.returncode, ended.stderr


def test_a_package_that_a_run_needs_is_packed():
    ended = run_without([*UNUSED, "cffi"])  # its one compiled file is imported by cryptography, and in no list of needs
    assert ended.returncode and "_cffi_backend" in ended.stderr
    assert not {"cffi", "cryptography"} & UNUSED


def test_the_needs_of_needs_are_named_with_the_versions_of_this_machine():
    names = {line.partition("==")[0]: line.partition("==")[2] for line in needed("fedlab-adapt", TORCH, "3.12")}
    assert {"flwr", "pydantic-core", "dp-accounting"} <= names.keys() and all(names.values())
    assert not {"torch", "triton", "nvidia-cublas", "fedlab-adapt", "pytest"} & names.keys()


def test_what_the_machine_has_stays_away_with_what_only_that_needs():
    names = {line.partition("==")[0] for line in needed("fedlab-adapt", {*TORCH, "Pydantic"}, "3.12")}
    assert "flwr" in names and not {"pydantic", "pydantic-core"} & names


def test_extensions_that_nothing_imports_go_with_their_libraries(tmp_path, monkeypatch):
    asks = {"a.cpython-312.so": ["libone.so"], "b.cpython-312.so": ["libtwo.so"], "libone.so": ["libthree.so"]}
    monkeypatch.setattr(offline_packages.shared_libraries, "needed", lambda path: asks.get(path.name, ["libc.so.6"]))
    files = [
        *(f"chem/Deep/{name}" for name in ("a.cpython-312.so", "b.cpython-312.so", "a.py")),
        *(f"chem.libs/lib{name}.so" for name in ("one", "two", "three")),
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    keep_imported_extensions(tmp_path, "chem", ["chem.Deep.a", "chem.Other.b"])
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()}
    assert kept == set(files) - {"chem/Deep/b.cpython-312.so", "chem.libs/libtwo.so"}


def test_tests_and_bytecode_are_not_packed(tmp_path):
    for name in ("some/__init__.py", "some/tests/test_a.py", "some/__pycache__/a.pyc", "some-1.dist-info/METADATA"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    pack(tmp_path / "in", tmp_path / "out.tar.xz")
    with tarfile.open(tmp_path / "out.tar.xz") as archive:
        assert {found.name for found in archive if found.isfile()} == {"some/__init__.py", "some-1.dist-info/METADATA"}


def test_a_package_without_wheels_is_named(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match=r"no wheels for Python 3\.12: see above"):
        offline_packages.install(["no-such-package==1.0"], tmp_path, "3.12")
    assert "no-such-package" in capfd.readouterr().err


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_list_of_packages_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys, content):
    if content:
        (tmp_path / "there.txt").write_bytes(content)
    monkeypatch.setattr("sys.argv", ["offline_packages", "--there", str(tmp_path / "there.txt")])
    with pytest.raises(SystemExit) as ended:
        offline_packages.main()
    assert ended.value.code == 2 and "there.txt cannot be read" in capsys.readouterr().err
