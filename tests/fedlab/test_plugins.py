"""Where modules of a user's own are found, here and in other processes."""

from __future__ import annotations

import os
import subprocess
import sys

from fedlab.plugins import python_path


def test_another_process_finds_the_modules_of_this_one_wherever_it_begins(tmp_path, monkeypatch):
    own, below, later = tmp_path / "own", tmp_path / "own" / "below", tmp_path / "later"
    for folder in (below, later):
        folder.mkdir(parents=True)
    (own / "found_here.py").touch()
    monkeypatch.setattr(sys, "path", ["", "below", *sys.path])
    monkeypatch.chdir(own)
    path = python_path()
    assert path.split(os.pathsep)[:2] == [str(own), str(below)]
    command = [sys.executable, "-S", "-P", "-c", "import found_here"]
    assert subprocess.run(command, cwd=later, env={"PYTHONPATH": path}).returncode == 0
    monkeypatch.chdir(later)
    assert python_path().split(os.pathsep)[:2] == [str(later), str(later / "below")]
