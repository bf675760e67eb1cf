"""`fedlab report`: pages made again from what is on disk."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import fedlab
import toy
from fedlab import launch
from fedlab.cli.app import app
from fedlab.runs.directory import RunDirectory
from tables import put


@pytest.fixture
def preset(monkeypatch, tmp_path):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.chdir(tmp_path)
    return toy.write_preset(tmp_path, rounds=1)


def test_the_page_of_a_run_is_made_again_and_a_run_without_a_round_is_refused(preset, tmp_path):
    page = fedlab.run(preset, report=True).directory / "report.html"
    first = page.read_bytes()
    page.unlink()
    result = CliRunner().invoke(app, ["report", "runs/toy-0"])
    again = page.read_text(encoding="utf-8")
    assert result.output == f"wrote {page}\n"
    assert "Predictions for the clients" in again and "Predictions for the clients" not in first.decode()
    result = CliRunner().invoke(app, ["report", "runs/toy-0", "--pdf"])
    figures = sorted((page.parent / "figures").glob("*.pdf"))
    assert f"wrote {len(figures)} figures in {page.parent}/figures" in result.output and len(figures) > 4
    empty = RunDirectory.create(tmp_path / "runs", launch.prepare(preset, {}))
    result = CliRunner().invoke(app, ["report", str(empty.path)])
    assert result.exit_code == 1 and "no round yet" in result.stderr


def test_page_and_tables_of_a_comparison_are_made_again(preset, tmp_path):
    arguments = ["compare", str(preset), "--strategies", "source_only", "--seeds", "1", "--jobs", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "table"), "--latex"])
    assert result.output == (tmp_path / "table" / "table.tex").read_text() and result.output.startswith("% fedlab")
    names = ("report.html", "table.md", "table.csv", "table.json", "table.tex")
    for name in names:
        (tmp_path / "table" / name).unlink()
    result = CliRunner().invoke(app, ["report", "table"])
    assert result.output == f"wrote {tmp_path}/table/report.html\n"
    assert all((tmp_path / "table" / name).is_file() for name in names)
