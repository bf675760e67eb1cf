"""What is shown while cells run."""

from __future__ import annotations

import io

from rich.console import Console

import toy
from fedlab.comparison import plan, progress, runner, text_tables
from fedlab.runs.directory import RunDirectory
from tables import put


def test_where_a_run_stands(tmp_path):
    run = RunDirectory(tmp_path)
    assert progress.current_phase(tmp_path) == "starts"
    run.emit("connecting", clients=4)
    assert progress.current_phase(tmp_path) == "starts"
    run.emit("phase", round=0, rounds=3, phase="pretrain")
    assert progress.current_phase(tmp_path) == "pre-training"
    for number in range(60):
        run.emit("phase", round=2, rounds=3, phase="clients")
        run.emit("progress", round=2, phase="clients", done=number, total=60)
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('{"event": "pha')  # being written
    assert progress.current_phase(tmp_path) == "round 2 of 3, clients train"


def test_a_terminal_sees_each_cell_end(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    overrides = {"rounds": 1, "blobs.domains": "near,far"}
    request = plan.ComparisonRequest(
        toy.write_preset(tmp_path), "source_only,bad=dualadapt", 1, overrides, out=tmp_path / "out", jobs=1
    )
    planned = plan.plan_comparison(request)
    with progress.RichProgress(console) as live:
        comparison = runner.execute(planned, live)
        assert live.running == {}
    progress.print_summary(comparison, console)
    said = console.file.getvalue()
    for part in (
        "2 cells of",
        "source_only, seed 0  accuracy",
        "bad, seed 0  accuracy (average)",
        "2/2",
        "about",
        "± is half",
    ):
        assert part in said, part


def test_a_narrow_terminal_goes_without_some_columns():
    heads = ["variant", "accuracy", "difference", "p, Holm", "rank", "rounds", "traffic", "time"]
    text = text_tables.TextTable(
        "t", heads, [["dualadapt", "83.5 ± 0.6", "+7.8 ± 2.0", "0.002", "1.0", "5", "33.8 MB", "48 s"]]
    )
    assert progress.drop_columns(text, 100) == (text, [])
    narrow, dropped = progress.drop_columns(text, 60)
    assert dropped == ["rounds", "rank"]
    assert narrow.heads == ["variant", "accuracy", "difference", "p, Holm", "traffic", "time"]
    assert narrow.rows == [["dualadapt", "83.5 ± 0.6", "+7.8 ± 2.0", "0.002", "33.8 MB", "48 s"]]
    assert progress.drop_columns(text_tables.TextTable("t", heads, []), 20)[0].heads == heads[:4]


def test_a_comparison_without_any_result_has_a_table_all_the_same():
    text = text_tables.TextTable("t", ["", "time"], [])
    assert progress.drop_columns(text, 100) == (text, [])
