"""``pytest -m gpu`` on a machine that has torch and lacks what other tests import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def test_files_without_tests_for_a_gpu_are_not_imported(tmp_path):
    for package in ("ray", "fastapi", "uvicorn"):
        (tmp_path / f"{package}.py").write_text("raise ModuleNotFoundError('no such package here')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider", "--collect-only"]
    listed = subprocess.run(
        [*command, str(TESTS / "fedlab/engines"), str(TESTS / "fedlab/test_cuda_graphs.py")],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert not listed.returncode, listed.stdout
    assert listed.stdout.count("test_cuda_graphs.py::") >= 5 and "test_ray_actors" not in listed.stdout
