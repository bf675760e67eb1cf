"""A run ends when its metric improves no more, keeps the best round's checkpoint, and resumes to the same end."""

from __future__ import annotations

import json

import pytest

import fedlab
import toy
from fedlab.config.schema import StopConfig
from fedlab.errors import ConfigError
from fedlab.metrics import Metric
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable
from fedlab.server.early_stop import EarlyStop
from tables import put

TABLE = MetricTable(
    (
        Metric("error", higher_is_better=False),
        Metric("accuracy", higher_is_better=True),
        Metric("*_average", "average", order=2),
        Metric("*_global", "global", order=1),
    )
)


def record(number, **mean):
    return {"round": number, "mean": mean, "score": {}}


def test_a_run_ends_after_so_many_tests_without_an_improvement():
    stop = EarlyStop(StopConfig(metric="error", patience=2), TABLE)
    seen = [0.5, 0.3, 0.4, None, 0.3]
    for number, value in enumerate(seen):
        assert not stop.ended
        stop.add(record(number, **({} if value is None else {"error": value})))
    assert stop.ended and (stop.best, stop.best_round) == (0.3, 1)
    assert stop.message(4) == "the run ends with round 4: error has not improved in 2 tests since round 1 (0.3)"
    again = EarlyStop(StopConfig(metric="error", patience=2), TABLE)
    again.restore([record(number, **({} if value is None else {"error": value})) for number, value in enumerate(seen)])
    assert (again.ended, again.best_round) == (True, 1)


def test_a_group_is_judged_by_its_best_informed_metric():
    stop = EarlyStop(StopConfig(metric="accuracy", patience=1), TABLE)
    stop.add(record(0, accuracy_global=0.9, accuracy_average=0.5))
    stop.add(record(1, accuracy_global=0.1, accuracy_average=0.6))
    assert (stop.best, stop.best_round) == (0.6, 1)


def test_without_a_metric_nothing_ends_and_an_unknown_one_is_refused_in_round_1():
    free, unknown = EarlyStop(StopConfig(), TABLE), EarlyStop(StopConfig(metric="eror"), TABLE)
    for number in range(9):
        free.add(record(number, error=1.0))
    assert not free.ended and free.best_round is None
    unknown.add(record(0, error=1.0))
    with pytest.raises(ConfigError, match="no test measures 'eror'; did you mean 'error'"):
        unknown.add(record(1, error=1.0))
    with pytest.raises(ConfigError, match="more or less size"):
        EarlyStop(StopConfig(metric="size"), TABLE).add(record(1, size=1.0))


def test_a_run_keeps_its_best_round_and_goes_on_with_more_patience(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.setattr("fedlab.launch.write_page", lambda result: result)
    options = {"workload": "blobs", "blobs.client_labels": True, "strategy": "fedavg", "threads": 1, "rounds": 30}
    options |= {"client.steps": 20, "server.pretrain_steps": 0, "checkpoint.keep": 1, "name": "stops"}
    result = fedlab.run({**options, "stop.metric": "accuracy", "stop.patience": 2}, runs=tmp_path)
    done, best = result.rounds[-1]["round"], result.manifest["best_round"]
    assert done == best + 2 < 30 and result.manifest["ended_by"] == "metric"
    run = RunDirectory.open(result.directory)
    assert run.checkpoints.rounds() == [best, done]
    notes = [json.loads(line).get("note", "") for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert any("accuracy has not improved" in note for note in notes)
    assert len(fedlab.resume(run.path).rounds) == done + 1
    longer = fedlab.resume(run.path, overrides={"stop.patience": 3})
    straight = fedlab.run({**options, "stop.metric": "accuracy", "stop.patience": 3}, runs=tmp_path / "straight")
    assert longer.weights_sha256 == straight.weights_sha256 and longer.rounds[-1]["round"] > done
