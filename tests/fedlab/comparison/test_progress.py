"""What is shown while cells run."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

import toy
from fedlab.comparison import plan, progress, runner
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


@pytest.mark.parametrize(("cells", "words"), [(1, "1 cell of toy: 1 at a time"), (2, "2 cells of toy: 1 at a time")])
def test_one_cell_is_no_cells(cells, words):
    comparison = SimpleNamespace(cells=[None] * cells, preset="toy", directory="out")
    asked = SimpleNamespace(comparison=comparison, gpus=[], jobs=1, threads=2, backend=None)
    assert progress.header(asked, 0).startswith(words)


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


def test_the_estimate_falls_while_cells_take_as_long_as_before_and_rises_when_one_is_late(monkeypatch):
    live = progress.RichProgress(Console(file=io.StringIO()))
    live.bar.update(live.task, total=12, completed=4)
    assert live._left() == ""  # no cell has ended
    live.since, live.latest, live.done = 100.0, 160.0, 2  # one each 30 s, and 8 are left
    said = []
    for now in (160.0, 170.0, 160.0 + 9 * 30):
        monkeypatch.setattr(progress.time, "monotonic", lambda now=now: now)
        said.append(live._left())
    assert said == ["about 4 min 0 s left", "about 3 min 50 s left", "about 4 min 0 s left"]


def test_a_phase_with_many_clients_is_found_behind_their_events(tmp_path):
    run = RunDirectory(tmp_path)
    run.emit("phase", round=7, rounds=9, phase="clients")
    run.emit_all("client", [{"round": 7, "client": f"c{at}", "metrics": {"loss": 0.1}} for at in range(500)])
    assert progress.current_phase(tmp_path) == "round 7 of 9, clients train"
    run.emit_all("client", [{"round": 7, "client": f"c{at}", "metrics": {"loss": 0.1}} for at in range(25_000)])
    assert progress.current_phase(tmp_path) == "round 7"
