"""Comparisons over the run config of a Flower app."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedlab
from fedlab.cli.app import app
from fedlab.comparison import planner
from fedlab.comparison.flower_plan import plan_app
from fedlab.comparison.flower_work import FlowerWork
from fedlab.comparison.plan import ComparisonRequest
from fedlab.comparison.work import read_work, write_work
from fedlab.errors import ConfigError
from fedlab.flower_apps.engine import AppEngine
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.run import FlowerRun
from flower_apps import write_app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return str(write_app(tmp_path / "app"))


@pytest.mark.engine
def test_values_are_variants_with_the_bits_of_runs_on_their_own_and_are_kept(folder, tmp_path, monkeypatch):
    arguments = ["compare", folder, "num-server-rounds=1,2", "learning-rate=0.25", "--seeds", "2", "--jobs", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "4 cells of" in result.output
    comparison = fedlab.Comparison.read(tmp_path / "comparisons" / "app")
    assert comparison.labels == ["num-server-rounds=1", "num-server-rounds=2"] and comparison.metric == "eval_acc"
    assert list(comparison.summary()["rounds"]) == [1, 2] and comparison.baseline == "num-server-rounds=1"
    page = (comparison.directory / "report.html").read_text()
    assert f"fedlab flower {folder} num-server-rounds=1 learning-rate=0.25" in page  # does a run again
    project = FlowerProject.read(folder).with_overrides({"learning-rate": 0.25})
    alone = FlowerRun(project, 1, threads=1)
    cell, found = comparison.results[-1]
    assert (cell.label, cell.seed) == ("num-server-rounds=2", 1)
    assert found.weights_sha256 == alone.run(alone.create(tmp_path / "runs")).weights_sha256
    monkeypatch.setattr(FlowerRun, "run", None)  # nothing is run again
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and "4 of them finished already" in again.output


def test_a_run_travels_to_another_process_as_text(folder):
    project = FlowerProject.read(folder).with_overrides({"num-server-rounds": 1}, clients=2)
    run = FlowerRun(project, 7, threads=1, engine=AppEngine("ray", {"ray.cpus": "2"}))
    assert read_work(write_work(FlowerWork(run))).run == run


def test_the_engine_is_one_for_all_cells_and_another_one_finds_the_same_cells(folder):
    plans = [plan_app(ComparisonRequest(folder, "", 1, more)) for more in ({}, {"engine": "ray", "ray.cpus": 2})]
    assert plans[0].tasks.keys() == plans[1].tasks.keys()
    assert [task.work.run.engine.name for plan in plans for task in plan.tasks.values()] == ["inprocess", "ray"]
    assert "engine=ray ray.cpus=2" in plans[1].comparison.command


def test_an_app_whose_files_have_changed_has_other_cells_and_results_in_its_folder_are_no_files_of_it(folder):
    def runs():
        return set(plan_app(ComparisonRequest(folder, "", 1)).tasks)

    before, app = runs(), Path(folder)
    for name in ("runs/a-0/manifest.json", "runs/a-0/config.toml", ".venv/x.py", "tiny/__pycache__/x.py", "notes.md"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_text("1")
    assert runs() == before
    client = app / "tiny" / "client.py"
    client.write_text(client.read_text() + "\n# other\n")
    assert not runs() & before


def test_numbers_of_clients_are_values_and_text_is_taken_whole(folder):
    overrides = {"federation.num-supernodes": "2,3", "model.name": "a,b"}
    plan = plan_app(ComparisonRequest(folder, "", 1, overrides))
    assert plan.comparison.labels == ["federation.num-supernodes=2", "federation.num-supernodes=3"]
    works = [task.work for task in plan.tasks.values()]
    assert [work.run.project.clients for work in works] == [2, 3]
    assert {work.run.project.config["model.name"] for work in works} == {"a,b"}
    assert "'federation.num-supernodes=2|3' model.name=a,b" in plan.comparison.command


def test_options_are_no_app_wherever_they_are_compared(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for preset in ("", {"workload": "digits"}):
        with pytest.raises(ConfigError, match="no strategy to compare"):
            planner.plan(ComparisonRequest(preset, "", 1, title="."))
    assert planner.plan(ComparisonRequest(".", "", 1)).comparison.labels == ["tiny-app"]


@pytest.mark.parametrize(
    ("overrides", "changes", "sentence"),
    [
        ({"learning-rat": "0.1"}, {}, "the run config of tiny-app has no 'learning-rat'; did you mean 'learning-rate'"),
        ({"learning-rate": "0.1,fast"}, {}, "learning-rate: got 'fast'; a number is expected"),
        ({"learning-rate": "0.1,0.1"}, {}, "one of them twice"),
        ({"engine": ["pool", "ray"]}, {}, "the engine is one for all runs"),
        ({}, {"strategies": "fedavg"}, "a Flower app has its own strategy"),
        ({}, {"budget": {"rounds": 2}}, "leave out --strategies and --budget"),
        ({}, {"baseline": "no"}, "the baseline 'no' is none of the compared: tiny-app"),
    ],
)
def test_bad_input_is_a_sentence(folder, overrides, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan_app(
            ComparisonRequest(**{"preset": folder, "strategies": "", "seeds": 1, "overrides": overrides, **changes})
        )
