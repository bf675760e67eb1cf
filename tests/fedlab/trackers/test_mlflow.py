"""MLflow's stores read back with its own client."""

from __future__ import annotations

import pytest

import fedlab

pytest.importorskip("mlflow")

from mlflow.tracking import MlflowClient

from fedlab.trackers.mlflow import GROUP, MLflow
from fedlab.trackers.tracker import RunFacts

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow about its own use of SQLAlchemy


def runs_of(client, experiment="fedlab"):
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_a_run_is_one_of_the_store_beside_it_and_goes_on_there(tracked, tmp_path):
    result = tracked("mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    (run,) = runs_of(client)
    assert (run.info.run_name, run.info.status) == ("toy-0", "FINISHED")
    assert run.data.params["server.steps"] == "2" and run.data.params["strategy"] == "source_only"
    fedlab.resume(result.directory, rounds=3)
    (run,) = runs_of(client)
    history = client.get_metric_history(run.info.run_id, "mean/accuracy")
    rounds = fedlab.Result.read(result.directory).rounds
    assert [(point.step, point.value) for point in history] == [
        (record["round"], record["mean"]["accuracy"]) for record in rounds
    ]
    assert len(rounds) == 4 and run.info.status == "FINISHED"


def test_cells_of_a_comparison_are_tagged_with_it_in_the_store_that_is_named(tracked, tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    tracked("mlflow", compare=True)
    found = runs_of(MlflowClient(uri))
    assert [run.data.tags[GROUP] for run in found] == ["pair", "pair"]
    assert {run.data.params["seed"] for run in found} == {"0", "1"}


def test_names_that_it_does_not_take_are_rewritten_and_a_round_is_logged_once(tmp_path):
    tracker = MLflow(RunFacts(tmp_path / "run", "id", "p", "", {"a": "b" * 900}, -1, 2))
    for value in (0.5, 0.75):
        tracker.add(1, {"accuracy/ward (a)": value})
    tracker.close(failed=True)
    (run,) = runs_of(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"), "p")
    assert run.data.metrics == {"accuracy/ward _a_": 0.5} and run.info.status == "FAILED"
