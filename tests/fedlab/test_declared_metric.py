"""A workload of a user with a metric of its own: one declaration, and everything shows it."""

from __future__ import annotations

import json

import fedlab
import toy
from fedlab.metrics import Metric
from fedlab.runs.progress import PlainProgress, declared
from fedlab.runs.result import Result
from fedlab.workload import WorkloadSpec
from pages import Page
from tables import put

ENERGY = Metric("energy", "energy used", "kcal", higher_is_better=False)


class Burner(toy.Blobs):
    """A workload that reports the energy of its model's weights beside the loss."""

    def evaluate(self, model, data):
        squares = sum(float(weight.detach().square().sum()) for weight in model.parameters())
        return {"energy": squares, "loss": super().evaluate(model, data)["loss"]}


def test_a_new_metric_needs_one_declaration(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", WorkloadSpec(Burner, primary_metric="energy", metrics=(ENERGY,)))
    known = {name: value for name, value in toy.SMALL.items() if not name.startswith("dualadapt")}
    preset = toy.write_preset(tmp_path, **{**known, "strategy": "source_only", "rounds": 1, "report": True})
    run = fedlab.run(preset, runs=tmp_path / "runs")
    value = run.metric_table.format("energy", run.rounds[-1]["mean"]["energy"])
    assert value.endswith(" kcal")

    lines = []
    listener = PlainProgress(lines.append, declared(run.directory))
    for line in (run.directory / "events.jsonl").read_text().splitlines():
        listener.on_event(json.loads(line))
    assert f"round 1/1  energy used ↓ {value}  | energy used: near" in lines[-1]

    assert f"mean energy used over 2 clients is {value}" in "".join(
        Page((run.directory / "report.html").read_text()).text
    )

    frame = fedlab.compare(
        preset, "source_only,adabn", seeds=2, jobs=1, out=tmp_path / "out", target=1e6, overrides={"rounds": 1}
    )
    comparison = fedlab.Comparison.read(frame.attrs["directory"])
    assert (comparison.metric, comparison.more_is_better) == ("energy", False)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "energy used in kcal, lower is better, after the last round" in table
    assert "| variant | energy used ↓ |" in table and "Until energy used is 1e+06 kcal" in table
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.tables[0][0][1] == "energy used ↓"
    assert "has the best energy used" in "".join(page.text)


def test_a_run_of_before_the_declarations_shows_plain_names(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", WorkloadSpec(Burner))
    known = {name: value for name, value in toy.SMALL.items() if not name.startswith("dualadapt")}
    run = fedlab.run(
        toy.write_preset(tmp_path, **{**known, "strategy": "source_only", "rounds": 1}), runs=tmp_path / "runs"
    )
    manifest = json.loads((run.directory / "manifest.json").read_text())
    del manifest["metrics"], manifest["phases"]
    (run.directory / "manifest.json").write_text(json.dumps(manifest))
    old = Result.read(run.directory)
    assert old.metric_names == ["energy", "loss"] and old.metric_table.heading("energy") == "energy"
    assert old.metric_table.phase_title("clients") == "clients train"
