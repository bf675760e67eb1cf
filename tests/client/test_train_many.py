"""Clients of one process that train at once, through both apps: the results of the loop, errors and notes by client."""

from __future__ import annotations

import pytest
import torch

from fedlab import registry
from fedlab.checks import check_participation
from fedlab.client import app
from fedlab.errors import ConfigError
from fedlab.runs.directory import RunDirectory
from fedlab.strategies.vectorized import ManyClients
from tables import lead, put
from toy import SMALL, SPEC

OPTIONS = {key: value for key, value in SMALL.items() if not key.startswith("dualadapt")}
OPTIONS |= {"blobs.domains": "a,b,c,d,e", "blobs.client_labels": True, "rounds": 1, "threads": 1, "seed": 5}


@pytest.fixture
def federate(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", SPEC)

    def run(strategy="fedavg", **changes):
        config = registry.load_config({**OPTIONS, "strategy": strategy, "name": "toy"}, changes)
        directory = RunDirectory.create(tmp_path, config)
        lead(directory)
        return directory

    return run


def arrays_of(directory):
    return directory.checkpoints.latest()[1]["arrays"]


def notes_of(directory):
    text = (directory.path / "events.jsonl").read_text()
    return [line for line in text.splitlines() if '"event": "note"' in line]


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "fednova", "fedbn", "fedadam", "fedmedian"])
@pytest.mark.parametrize("vectorize", ["2", "auto"])
def test_a_round_is_that_of_one_client_after_another(federate, strategy, vectorize):
    loop, many = federate(strategy), federate(strategy, vectorize=vectorize)
    for name, tensor in arrays_of(loop).items():
        torch.testing.assert_close(arrays_of(many)[name], tensor, rtol=1e-5, atol=1e-6)
    assert many.manifest()["numerics"]["training"] == "vectorized"
    assert loop.manifest()["numerics"]["training"] == "one client at a time"
    assert loop.rounds()[-1]["bytes"] == many.rounds()[-1]["bytes"]
    assert not notes_of(many)


def test_it_gives_the_same_bits_twice(federate):
    assert federate(vectorize="3").manifest()["weights_sha256"] == federate(vectorize="3").manifest()["weights_sha256"]


def test_every_process_asks_the_same_client_how_many_fit(federate, tmp_path, monkeypatch):
    asked, memory = [], ManyClients.memory

    def spy(self, workload, message, context):
        asked.append(context.partition)
        return memory(self, workload, message, context)

    monkeypatch.setattr(ManyClients, "memory", spy)
    monkeypatch.setattr(app, "_at_once", {})
    (tmp_path / "clients.txt").write_text("d, e\n")
    federate(vectorize="auto", schedule=str(tmp_path / "clients.txt"))
    assert asked == [0]


@pytest.mark.parametrize("broken", [0, 2])
def test_a_client_that_fails_is_named_and_the_others_are_used(federate, broken):
    directory = federate(vectorize="5", min_clients=3, **{"blobs.broken": broken})
    (failure,) = directory.rounds()[-1]["failures"]
    assert (failure["client"], failure["phase"]) == ("abcde"[broken], "clients")
    alone = federate(min_clients=3, **{"blobs.broken": broken})
    for name, tensor in arrays_of(alone).items():
        torch.testing.assert_close(arrays_of(directory)[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_strategy_that_cannot_says_so_once_and_gives_the_bits_of_the_loop(federate):
    loop, many = federate("fedparts", rounds=2), federate("fedparts", rounds=2, vectorize="auto")
    assert loop.manifest()["weights_sha256"] == many.manifest()["weights_sha256"]
    assert sum("train one after another" in note for note in notes_of(many)) == 1


def test_more_than_fit_into_memory_are_refused_with_how_many_would(federate):
    with pytest.raises(Exception, match=r"100000000 clients at once .* would fit"):
        federate(vectorize="100000000")


@pytest.mark.parametrize("value", ["on", "0", "-1", "1.5"])
def test_a_wrong_number_is_refused(federate, value):
    with pytest.raises(ConfigError, match="vectorize"):
        federate(vectorize=value)


def test_an_engine_with_a_process_for_each_client_is_refused(federate):
    with pytest.raises(ConfigError, match=r"vectorize=auto .*engine 'ray'.*use engine=local"):
        check_participation(
            registry.load_config({**OPTIONS, "engine": "ray", "vectorize": "auto", "strategy": "fedavg"})
        )
