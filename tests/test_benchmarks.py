"""Benchmarks are commands that docs quote: they must start, and refuse what they do not know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "module",
    [
        "adaptation",
        "diffusion",
        "engines",
        "episodes",
        "messages",
        "molecules",
        "onboarding",
        "startup",
        "threads",
        "wire",
    ],
)
def test_a_benchmark_says_what_it_does(module):
    output = call(f"benchmarks.{module}", "--help")
    assert output.returncode == 0, output.stderr
    assert f"python -m benchmarks.{module}" in output.stdout


def test_an_unknown_ablation_is_refused():
    output = call("benchmarks.adaptation", "rounds=1", "--ablate", "mixup of")
    assert output.returncode == 2
    assert "did you mean 'mixup off'?" in output.stderr


def test_an_unknown_method_is_refused():
    output = call("benchmarks.startup", "--methods", "STARTUP, hard label")
    assert output.returncode == 2
    assert "did you mean 'STARTUP, hard labels'?" in output.stderr
