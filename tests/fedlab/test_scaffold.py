"""What `fedlab new` writes runs, and tests itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fedlab
from fedlab.errors import ConfigError
from fedlab.scaffold import write_package

TINY = {"data.max_examples": 100, "client.steps": 2, "client.batch_size": 16, "threads": 1}


@pytest.mark.parametrize("kind", ["workload", "strategy"])
def test_three_files_that_run(tmp_path, kind, monkeypatch):
    name = f"my_new_{kind}"
    paths = write_package(kind, name, tmp_path)
    assert [path.name for path in paths] == ["pyproject.toml", f"{name}.py", f"test_{name}.py"]
    assert "NAME" not in "".join(path.read_text() for path in paths)
    monkeypatch.syspath_prepend(str(tmp_path / name))
    result = fedlab.run(f"{name}:PRESET", runs=tmp_path / "runs", rounds=1, overrides=TINY)
    assert result.manifest["status"] == "finished"
    assert result.config[kind] == f"{name}:SPEC"
    assert result.directory.name == f"{name}-0"


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["workload", "strategy"])
def test_their_own_tests_pass(tmp_path, kind):
    folder = write_package(kind, "my_thing", tmp_path)[0].parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", ["workload", "strategy"])
def test_their_own_tests_have_no_settings_of_the_project_around_them(tmp_path, kind):
    """A clone of fedlab, in which README.md says to make one, asks pytest for plug-ins that not everybody has."""
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = ["--of-no-plugin"]\n')
    folder = write_package(kind, "my_thing", tmp_path)[0].parent
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "--ignore=test_my_thing.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stderr


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("My Task", "is no name for a module"),
        ("class", "is no name for a module"),
        ("digits", "is the name of a workload of fedlab already"),
        ("scaffold", "is the name of a strategy of fedlab already"),
        ("data", "is a section of options that every run has"),
        ("metric", "the module uses a class Metric already"),
        ("dualadapt_no_mixup", "is the name of an ablation"),
        ("\u00e4rger", "is no name for a module"),
        ("json", "a module 'json' is installed already"),
    ],
)
def test_names_that_cannot_be(tmp_path, name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        write_package("workload", name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "my_task").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        write_package("workload", "my_task", tmp_path)
