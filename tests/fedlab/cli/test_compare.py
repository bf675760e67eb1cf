"""`fedlab compare`: what it prints, where, with which status, and what it refuses."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

import toy
from fedlab.cli.app import app
from fedlab.comparison import cells as running
from fedlab.workload import WorkloadSpec
from in_process import call
from tables import put


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch, tmp_path):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def preset(tmp_path):
    return toy.write_preset(tmp_path)


@pytest.mark.engine
def test_quiet_json_and_lines_say_the_same(preset, tmp_path):
    options = ("--strategies", "source_only", "--seeds", 1, "--target", 0.9, "rounds=1")
    plain = call("compare", preset, *options).output
    assert "1 cell of" in plain and "1/1  source_only, seed 0  accuracy" in plain
    assert "Until accuracy is 90.0 %" in plain
    assert max(map(len, plain.splitlines()[2:-1])) <= 100
    assert call("compare", preset, *options, "--quiet").output.strip() == str(tmp_path / "comparisons" / "toy")
    lines = [json.loads(line) for line in call("compare", preset, *options, "--json").output.splitlines()]
    assert [line["event"] for line in lines] == ["begin", "result"]
    assert lines[0]["finished"] == 1
    assert lines[-1]["rows"][0]["label"] == "source_only"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--strategies", "dualadap"], "did you mean 'dualadapt'"),
        ([], "no strategy to compare"),
        (["--strategies", "dualadapt", "--jobs", 99], "--jobs 99 with threads=1 needs 99 CPU cores"),
        (["--strategies", "dualadapt", "--baseline", "oracle"], "the baseline 'oracle' is none of the compared"),
        (
            ["--strategies", "dualadapt", "rounds=2", "--budget", "rounds=3"],
            "rounds are set as an option and as a budget",
        ),
        (["--strategies", "dualadapt", "--target", "nan"], "the target is nan"),
        (
            ["--strategies", "dualadapt", "--metric", "accuracy", "--target", "40"],
            "the target is 40, and accuracy is a fraction between 0 and 1; 40.0 % is 0.4",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(preset, tmp_path, arguments, sentence):
    result = call("compare", preset, *arguments, code=1)
    assert sentence in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["toy.toml"]


def test_one_comparison_at_a_time(preset, tmp_path):
    with running.directory_lock(tmp_path / "out"):
        error = call("compare", preset, "--strategies", "source_only", "--out", tmp_path / "out", code=1).stderr
    assert "another comparison may run there" in error


def test_tables_in_latex_go_to_the_output_and_the_progress_to_the_terminal(preset, tmp_path, monkeypatch):
    """`fedlab compare ... --latex > table.tex` takes minutes, too."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr("fedlab.cli.compare.stderr", terminal)
    options = ["--strategies", "source_only", "--seeds", "1", "rounds=1", "--jobs", "1", "--latex"]
    result = call("compare", preset, *options)
    assert result.stdout.startswith("\\begin{table}") or result.stdout.startswith("%")
    assert "source_only, seed 0  accuracy" in terminal.file.getvalue()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedlab.comparison.runner.execute", interrupted)
    stopped = CliRunner().invoke(app, ["compare", preset, *options])
    assert stopped.exit_code == 130 and stopped.output.rstrip().endswith(
        "rounds=1 --strategies source_only --seeds 1 --jobs 1 --latex"
    )


def test_a_cell_that_failed_is_an_error_behind_the_tables(preset, monkeypatch):
    def loss(self, model, batch):
        raise ZeroDivisionError("no luck")

    put(monkeypatch, "workload", "blobs", WorkloadSpec(type("Bad", (toy.Blobs,), {"loss": loss})))
    options = ["--strategies", "source_only", "--seeds", "1", "rounds=1", "--jobs", "1"]
    result = call("compare", preset, *options, code=1)
    assert "1 of 1 cell failed" in result.stderr and "no luck" in result.stderr
