"""Shared pre-training: once for all, the same bits as alone, and paid for by everybody."""

from __future__ import annotations

import threading
import time

import pytest
import torch

import toy
from fedlab import launch, registry
from fedlab.engines import inprocess
from fedlab.errors import FedlabWarning
from fedlab.runs import pretrain_cache
from fedlab.runs.directory import RunDirectory
from tables import put
from toy import SMALL, write_preset

CPU = torch.device("cpu")
SHARING = ["dualadapt", "adabn", "self_training", "oracle", "fedavg", "startup"]
APART = ["fed_mcd", "fed_dann"]  # they train further parts from the start: other models


@pytest.fixture
def federate(tmp_path, monkeypatch):
    """A run through both apps, alone or with a shared folder."""
    put(monkeypatch, "workload", "blobs", toy.SPEC)

    def run(strategy, shared="", **options):
        usable = {key: value for key, value in SMALL.items() if not key.startswith("dualadapt")}
        labels = {
            "blobs.client_labels": registry.find("strategy", strategy).spec.needs_client_labels,
            "blobs.linear": True,
        }
        preset = write_preset(tmp_path, **{**usable, "strategy": strategy, "rounds": 1})
        config = launch.prepare(
            preset, {**labels, "checkpoint.pretrain_cache": str(shared), "client.learning_rate": 0.05, **options}
        )
        directory = RunDirectory.create(tmp_path, config)
        inprocess.run_config(launch.APPS, config, directory.path)
        return directory

    return run


@pytest.mark.parametrize("name", [*SHARING, *APART])
def test_a_run_that_takes_it_over_has_the_bits_of_one_on_its_own(federate, tmp_path, name):
    store = tmp_path / "shared"
    federate("source_only", store)
    (made,) = store.glob("*.pt")
    alone, taken = federate(name), federate(name, store)
    assert taken.manifest()["weights_sha256"] == alone.manifest()["weights_sha256"]
    assert [line["clients"] for line in taken.rounds()] == [line["clients"] for line in alone.rounds()]
    assert [line["server"] for line in taken.rounds()] == [line["server"] for line in alone.rounds()]
    assert (set(store.glob("*.pt")) == {made}) == (name in SHARING)


@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"server.pretrain_steps": 7}, {"server.batch_size": 8}, {"server.pretrain_learning_rate": 1e-3}],
)
def test_another_pre_training_is_another_file(federate, tmp_path, options):
    store = tmp_path / "shared"
    federate("source_only", store)
    alone, other = federate("source_only", **options), federate("source_only", store, **options)
    assert other.manifest()["weights_sha256"] == alone.manifest()["weights_sha256"]
    assert len(list(store.glob("*.pt"))) == 2


def test_what_comes_after_it_does_not_matter(federate, tmp_path):
    store = tmp_path / "shared"
    federate("source_only", store)
    federate("source_only", store, **{"server.steps": 9, "server.learning_rate": 0.1, "server.ema_decay": 0.5})
    assert len(list(store.glob("*.pt"))) == 1


def test_it_is_made_once_and_whoever_takes_it_over_pays_for_it(tmp_path):
    calls = []

    def make():
        calls.append(1)
        time.sleep(0.2)
        return {"model": {"w": torch.ones(2)}, "loss": 0.5}

    with pretrain_cache.use_cache(str(tmp_path)) as first:
        made = pretrain_cache.get_or_compute(lambda: "key", make, CPU)
    with pretrain_cache.use_cache(str(tmp_path)) as second:
        taken = pretrain_cache.get_or_compute(lambda: "key", make, CPU)
    assert len(calls) == 1
    assert taken["loss"] == made["loss"] and torch.equal(taken["model"]["w"], made["model"]["w"])
    assert set(taken) == {"model", "loss"}
    assert 0.1 < second.saved_seconds <= 0.25
    assert -0.1 < first.saved_seconds <= 0


def test_who_comes_meanwhile_waits(tmp_path):
    calls = []

    def make():
        calls.append(1)
        time.sleep(0.2)
        return {"loss": 1.0}

    def work():
        with pretrain_cache.use_cache(str(tmp_path)):
            pretrain_cache.get_or_compute(lambda: "key", make, CPU)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_nothing_is_shared_or_named_without_a_folder():
    def never():
        raise AssertionError

    with pretrain_cache.use_cache("") as store:
        assert pretrain_cache.get_or_compute(never, lambda: {"loss": 1.0}, CPU) == {"loss": 1.0}
    assert pretrain_cache.get_or_compute(never, lambda: {"loss": 2.0}, CPU) == {"loss": 2.0}
    assert store.saved_seconds == 0


@pytest.mark.parametrize("damage", [b"damaged", None])
def test_a_file_that_cannot_be_read_is_computed_anew_with_a_warning(tmp_path, damage):
    get_or_compute = pretrain_cache.get_or_compute
    with pretrain_cache.use_cache(str(tmp_path)):
        get_or_compute(lambda: "a", lambda: {"x": torch.zeros(1)}, CPU)
        (path,) = tmp_path.glob("a.pt")
        path.write_bytes(damage) if damage else torch.save({"x": torch.ones(1)}, path)  # without its seconds
        with pytest.warns(FedlabWarning, match=r"a\.pt cannot be read .*; it is computed anew"):
            found = get_or_compute(lambda: "a", lambda: {"x": torch.full((1,), 2.0)}, CPU)
        assert found["x"].item() == 2.0
        assert get_or_compute(lambda: "a", dict, CPU)["x"].item() == 2.0
