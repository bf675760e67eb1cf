"""A run ends after its metric improves no more, keeps the best round's checkpoint, and resumes to the same end."""

from __future__ import annotations

import json
import math

import pytest

import fedlab
import toy
from fedlab.config.run_options import StopConfig
from fedlab.errors import ConfigError
from fedlab.metrics import Metric
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable, mean_over
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
        assert not stop.is_last(number)
        stop.add(record(number, **({} if value is None else {"error": value})))
    assert (stop.is_last(4), stop.is_last(5), stop.best, stop.best_round) == (False, True, 0.3, 1)
    stop.add(record(5, error=0.1))  # the last round stays the last, and may be the best
    assert (stop.is_last(5), stop.best_round) == (True, 5)
    assert stop.message(5) == (
        "the run ends with round 5: error had not improved in 2 tests up to round 4; the best is 0.1 in round 5"
    )
    again = EarlyStop(StopConfig(metric="error", patience=2), TABLE)
    rounds = [record(number, **({} if value is None else {"error": value})) for number, value in enumerate(seen)]
    again.restore(rounds, evaluate_every=1)
    assert (again.ended_in, again.best_round) == (4, 1)


def test_a_round_that_was_tested_as_the_last_one_does_not_count_in_a_longer_run():
    straight, resumed = (EarlyStop(StopConfig(metric="error", patience=2), TABLE) for _ in range(2))
    tests = {0: 0.5, 2: 0.6, 3: 0.9, 4: 0.7}  # rounds=3 evaluate_every=2, then longer
    straight.restore([record(number, error=tests[number]) for number in (0, 2)], evaluate_every=2)
    resumed.restore([record(number, error=tests[number]) for number in (0, 2, 3)], evaluate_every=2)
    for stop in (straight, resumed):
        stop.add(record(4, error=tests[4]))
    assert straight.ended_in == resumed.ended_in == 4


def test_a_group_is_judged_by_its_best_informed_metric():
    stop = EarlyStop(StopConfig(metric="accuracy", patience=1), TABLE)
    stop.add(record(0, accuracy_global=0.9, accuracy_average=0.5))
    stop.add(record(1, accuracy_global=0.1, accuracy_average=0.6))
    assert (stop.best, stop.best_round) == (0.6, 1)


def test_without_a_metric_nothing_ends_and_an_unknown_one_is_refused_in_round_1():
    free, unknown = EarlyStop(StopConfig(), TABLE), EarlyStop(StopConfig(metric="eror"), TABLE)
    for number in range(9):
        free.add(record(number, error=1.0))
    assert free.ended_in is None and free.best_round is None
    unknown.add(record(0, error=1.0))
    with pytest.raises(ConfigError, match="no test measures 'eror'; did you mean 'error'"):
        unknown.add(record(1, error=1.0))
    with pytest.raises(ConfigError, match="more or less size"):
        EarlyStop(StopConfig(metric="size"), TABLE).add(record(1, size=1.0))


def records_of(near, far):
    """Records of tests of two clients; None: the client was away."""
    rounds = [dict(zip(("near", "far"), values, strict=True)) for values in zip(near, far, strict=True)]
    for number, values in enumerate(rounds):
        clients = {name: {"accuracy": value} for name, value in values.items() if value is not None}
        yield {"round": number, "clients": clients, "mean": mean_over(clients), "score": {}}


@pytest.mark.parametrize(
    ("far", "best"),
    [
        ([0.40, 0.44, None, 0.52, 0.56, 0.60], 5),  # away once: the mean of that round alone is 0.84
        ([None, None, 0.40, 0.44, 0.48, 0.52], 5),  # comes late: the mean falls from 0.82 to 0.62
    ],
)
def test_a_hard_client_that_is_away_makes_no_best_round_and_ends_no_run_that_improves(far, best):
    stop = EarlyStop(StopConfig(metric="accuracy", patience=3), TABLE)
    stop.restore(records_of([0.80, 0.82, 0.84, 0.86, 0.88, 0.90], far), evaluate_every=1)
    assert (stop.ended_in, stop.best_round) == (None, best)


def test_a_run_that_gets_worse_ends_though_its_hard_client_went():
    stop = EarlyStop(StopConfig(metric="accuracy", patience=3), TABLE)
    stop.restore(records_of([0.80, 0.79, 0.78, 0.77], [0.40, None, None, None]), evaluate_every=1)
    assert (stop.ended_in, stop.best_round) == (3, 0)


def test_tests_of_other_clients_for_the_most_part_are_compared_by_their_means():
    stop = EarlyStop(StopConfig(metric="accuracy", patience=3), TABLE)
    for number, (client, value) in enumerate([("a", 0.5), ("b", 0.6), ("a", 0.55)]):
        clients = {client: {"accuracy": value}}
        stop.add({"round": number, "clients": clients, "mean": mean_over(clients), "score": {}})
    assert (stop.best, stop.best_round) == (0.6, 1)


def test_a_test_that_is_no_finite_number_is_never_the_best():
    stop = EarlyStop(StopConfig(metric="error", patience=3), TABLE)
    for number, value in enumerate([math.nan, 0.5, math.inf, 0.4]):
        stop.add({"round": number, "clients": {}, "mean": {}, "score": {"error": value}})
    assert (stop.best, stop.best_round) == (0.4, 3)
    never = EarlyStop(StopConfig(metric="error", patience=1), TABLE)
    never.add(record(0, error=math.nan))
    assert never.message(1).endswith("up to round 0; it was never a finite number")


def test_a_run_keeps_its_best_round_and_goes_on_with_more_patience(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    options = {"workload": "blobs", "blobs.client_labels": True, "strategy": "fedavg", "threads": 1, "rounds": 30}
    options |= {"report": False}
    options |= {"client.steps": 20, "server.pretrain_steps": 0, "checkpoint.keep": 1, "name": "stops"}
    result = fedlab.run({**options, "stop.metric": "accuracy", "stop.patience": 2}, runs=tmp_path)
    done, best = result.rounds[-1]["round"], result.manifest["best_round"]
    assert done == best + 3 < 30 and result.manifest["ended_by"] == "metric"
    run = RunDirectory.open(result.directory)
    assert run.checkpoints.rounds() == [best, done]
    notes = [json.loads(line).get("note", "") for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert any("accuracy had not improved" in note for note in notes)
    assert len(fedlab.resume(run.path).rounds) == done + 1
    longer = fedlab.resume(run.path, overrides={"stop.patience": 3})
    straight = fedlab.run({**options, "stop.metric": "accuracy", "stop.patience": 3}, runs=tmp_path / "straight")
    assert longer.weights_sha256 == straight.weights_sha256 and longer.rounds[-1]["round"] > done


def test_the_last_round_of_a_run_that_is_stopped_is_one_for_its_clients(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    options = {"workload": "blobs", "strategy": "source_free", "source_free.steps": 2, "threads": 1, "rounds": 9}
    options |= {"source_free.min_examples_per_class": 0}
    options |= {"report": False}
    options |= {"server.steps": 0, "server.pretrain_steps": 0, "evaluate_every": 2}  # so that nothing ever improves
    result = fedlab.run({**options, "stop.metric": "accuracy", "stop.patience": 1}, runs=tmp_path)
    assert [record["round"] for record in result.rounds if record["clients"]] == [0, 2, 3]
    for metrics in result.rounds[3]["clients"].values():
        assert "accuracy_personal" in metrics
    assert result.manifest["ended_by"] == "metric"
