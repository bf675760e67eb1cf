"""What a client with a personal model predicts with: from a message, and from a checkpoint of the run."""

from __future__ import annotations

import shutil

import pytest
import torch

import plain_loops as plain
from fedlab.inference.predict import Recalled
from fedlab.launch import saved_config
from fedlab.metrics import FRACTION, Metric
from fedlab.registry import STRATEGIES, find
from fedlab.runs.metrics import MetricTable
from fedlab.strategies.personal import PERSONAL_METRICS
from tables import put
from toy import SPEC

PERSONAL = [name for name in STRATEGIES if find("strategy", name).spec.metrics == PERSONAL_METRICS]


@pytest.mark.parametrize("name", PERSONAL)
def test_what_predicts_from_a_checkpoint_is_what_was_tested(record, tmp_path, monkeypatch, name):
    _, directory = record(name, **plain.options(tmp_path))
    put(monkeypatch, "workload", "blobs", SPEC)
    for number in (1, 2, 3):  # of a checkpoint of an earlier round, as of the last
        recalled = Recalled(directory.checkpoints.path(number), saved_config(directory))
        for partition, client in enumerate(plain.CLIENTS):
            arrays, predictor = recalled.in_place_of(partition)
            metrics = plain.WORKLOAD.evaluate(predictor, plain.WORKLOAD.data(partition, "test"))
            assert metrics["accuracy"] == directory.rounds()[number]["clients"][client]["accuracy_personal"]
    shutil.rmtree(directory.path / "client-state")
    arrays, _ = recalled.in_place_of(0)
    assert all(torch.equal(arrays[key], value) for key, value in plain.result_of(directory).items())


def test_the_strategies_are_those_with_a_model_of_each_client():
    assert PERSONAL == ["ditto", "apfl", "fedper", "fedrep"]
    assert all(find("strategy", name).spec.client_state for name in PERSONAL)


def test_both_models_are_results_and_the_personal_one_judges_the_run():
    accuracy = Metric("accuracy", unit=FRACTION, higher_is_better=True)
    table = MetricTable((*PERSONAL_METRICS, accuracy))
    names = ["accuracy_personal", "accuracy_global"]
    assert table.sorted(names) == ["accuracy_global", "accuracy_personal"] == table.shown(table.sorted(names))
    assert table.primary_metric(names) == "accuracy_personal"
    assert [table.direction(name) for name in names] == [1, 1]
