"""Strategies whose clients adapt after the last round: what changes, what stays, and what predicts."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

from fedlab import launch
from fedlab.errors import ConfigError
from fedlab.inference.predict import Recalled
from fedlab.launch import saved_config
from fedlab.models.feature_classifier import FeatureClassifier
from fedlab.runs.client_state import ClientState
from fedlab.server import run_events
from fedlab.workload import WorkloadSpec
from tables import put
from toy import SPEC, Blobs, write_preset

WORKLOAD = Blobs(domains="a,b,c")
SHORT = {"source_free.steps": 3, "source_free.batch_size": 8, "source_free.min_agreement": 0.0}
PAIRS = [("source_free", "source_only", {}), ("dualadapt", "dualadapt", {"dualadapt.client_adapt": "source_free"})]


@pytest.mark.parametrize(("name", "plain", "changes"), PAIRS)
def test_the_run_is_that_without_adaptation_and_each_client_has_a_model_more(record, monkeypatch, name, plain, changes):
    directory = record(name, **SHORT, **changes)[1]
    without = record(plain)[1]
    assert directory.manifest()["weights_sha256"] == without.manifest()["weights_sha256"]
    for ours, theirs in zip(directory.rounds(), without.rounds(), strict=True):
        for client, metrics in theirs["clients"].items():
            assert metrics.items() <= ours["clients"][client].items()
            more = {"accuracy_personal", "adapted", "agreement", "information_old", "information_new"}
            assert ours["clients"][client].keys() - metrics.keys() == (more if ours["round"] == 2 else set())

    put(monkeypatch, "workload", "blobs", SPEC)
    recalled = Recalled(directory.checkpoints.path(2), saved_config(directory))
    for partition, client in enumerate("abc"):
        _, predictor = recalled.in_place_of(partition)
        found = WORKLOAD.evaluate(predictor, WORKLOAD.data(partition, "test"))["accuracy"]
        assert found == directory.rounds()[2]["clients"][client]["accuracy_personal"]
    adapted = recalled.in_place_of(0)[0]
    shutil.rmtree(directory.path / "client-state")
    theirs = recalled.in_place_of(0)[0]
    assert not torch.equal(adapted["features.1.weight"], theirs["features.1.weight"])
    assert torch.equal(adapted["head.0.weight"], theirs["head.0.weight"])


def test_a_client_whose_new_model_is_not_kept_predicts_as_without_adaptation(record):
    _, directory = record(
        "source_free", **{**SHORT, "source_free.min_agreement": 1.0, "source_free.learning_rate": 1.0}
    )
    for metrics in directory.rounds()[2]["clients"].values():
        assert metrics["adapted"] == 0.0
        assert metrics["accuracy_personal"] == metrics["accuracy"]


def test_nothing_but_a_number_of_examples_goes_up(record):
    seen, directory = record("source_free", **SHORT)
    assert {(purpose, number) for purpose, number, _ in seen} == {
        ("evaluate", 0),
        ("evaluate", 1),
        ("train", 2),
        ("evaluate", 2),
    }
    assert all(not seen["train", 2, partition].answered for partition in range(3))
    assert all(0 < size["train_up"] < 500 for size in directory.rounds()[2]["bytes"].values())


def test_progress_says_in_the_last_round_that_clients_adapt_and_how_far_they_are(record, monkeypatch):
    monkeypatch.setattr(run_events, "CLIENT_SECONDS", -1.0)
    _, directory = record("dualadapt", **SHORT, **{"dualadapt.client_adapt": "source_free"})
    events = [json.loads(line) for line in (directory.path / "events.jsonl").read_text().splitlines()]
    shown = [(one["round"], one["phase"]) for one in events if one["event"] == "phase"]
    assert (1, "clients") in shown and (1, "adapt") not in shown
    assert (2, "adapt") in shown and (2, "clients") not in shown
    steps = [(one["client"], one["done"], one["total"]) for one in events if "client" in one and "done" in one]
    assert steps == [(client, step, 3) for client in "abc" for step in (1, 2, 3)]
    assert directory.rounds()[2]["seconds"].keys() == directory.rounds()[1]["seconds"].keys()


def test_every_training_leaves_a_state_and_only_the_last_a_model(record):
    _, directory = record("dualadapt", **SHORT, **{"dualadapt.client_adapt": "source_free", "checkpoint.keep": 9})
    states = ClientState(directory.path / "client-state" / "1")
    assert states.rounds() == [1, 2]
    assert states.load(2) == {}
    assert set(states.load(3)["states"]) == {"arrays", "head"}


@pytest.fixture
def preset(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", SPEC)
    return write_preset(tmp_path)


def test_options_of_a_method_exist_where_it_is_used(preset):
    chosen = {"strategy": "source_only", "source_only.client_adapt": "source_free", "source_free.steps": 7}
    config = launch.prepare(preset, chosen)
    assert config.adaptation.steps == 7
    assert config.plugins["strategy"] == launch.prepare(preset, chosen).plugins["strategy"]
    with pytest.raises(ConfigError, match=r"option 'source_free.steps' has no effect"):
        launch.prepare(preset, {"source_free.steps": 7})
    with pytest.raises(ConfigError, match=r"unknown adaptation 'source_fre'.*source_free"):
        launch.prepare(preset, {"dualadapt.client_adapt": "source_fre"})


def test_a_model_without_parts_is_refused(preset):
    with pytest.raises(ConfigError, match=r"source_free needs a model with .features and .head; Linear"):
        launch.prepare(preset, {"strategy": "source_free", "blobs.headless": True})


def test_a_backbone_that_is_frozen_is_refused(monkeypatch, preset):
    class Frozen(Blobs):
        def model(self):
            return FeatureClassifier(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4, affine=False)), nn.Linear(4, 3))

    put(monkeypatch, "workload", "blobs", WorkloadSpec(Frozen, name="blobs"))
    with pytest.raises(ConfigError, match=r"has none to train, since its backbone is frozen"):
        launch.prepare(preset, {"strategy": "source_free"})


def test_several_rows_an_input_and_new_classes_are_refused():
    with pytest.raises(ConfigError, match=r"workload 'camvid' has \d+ rows of features"):
        launch.prepare("source-only-camvid", {"strategy": "source_free"})
    with pytest.raises(ConfigError, match="the server has never seen"):
        launch.prepare("startup-omniglot", {"strategy": "source_free"})
