"""Whole runs from the composition root: what they leave, that they repeat, and that every preset runs."""

from __future__ import annotations

import json
import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Barrier

import pytest
import torch

import fedlab
import toy
from benchmarks.gpu.tiny import tiny_round
from cuda_operations import NotDeterministic
from fedlab import launch, registry
from fedlab.config.presets import preset_names
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, DataError
from fedlab.run_data import partition_statistics
from fedlab.seeds import WaitingWarning
from fedlab.workload import WorkloadSpec
from fedlab.workloads.camvid import by_pixel
from tables import put

FULL = os.environ.get("FEDLAB_DATA", "")  # read before the fixture that hides it


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


def run(tmp_path, **changes):
    return fedlab.run(toy.write_preset(tmp_path, **changes), runs=tmp_path / "runs")


def test_a_run_leaves_what_the_design_says(tmp_path):
    result = run(tmp_path, report=True)
    assert {path.name for path in result.directory.iterdir()} >= {
        "config.toml",
        "manifest.json",
        "split.json",
        "metrics.jsonl",
        "events.jsonl",
        "tensorboard",
        "checkpoints",
        "report.html",
    }
    assert [record["round"] for record in result.rounds] == [0, 1, 2, 3]
    assert result.manifest["status"] == "finished"
    assert len(result.weights_sha256) == 64
    assert {"accuracy_global", "accuracy_local", "accuracy_average", "accuracy_source_only"} <= set(result.metrics)
    assert list(result.metrics["client"].unique()) == ["near", "far"]
    record = result.rounds[-1]
    assert set(record["seconds"]) == {"server", "clients", "evaluate"}
    assert all(value["train_down"] > value["train_up"] > 0 for value in record["bytes"].values())


def test_the_split_is_written_with_the_labels_that_the_simulation_knows(tmp_path, monkeypatch):
    blind = run(tmp_path).directory / "split.json"
    assert json.loads(blind.read_text()) == {
        "clients": [{"name": name, "examples": 90, "labels": None} for name in ("near", "far")]
    }
    held = run(tmp_path, strategy="fedavg", **{"blobs.client_labels": True}).directory / "split.json"
    counts = [{str(k): int((toy.blobs(90, shift, 7)["y"] == k).sum()) for k in range(3)} for shift in (0.5, 1.0)]
    assert [client["labels"] for client in json.loads(held.read_text())["clients"]] == counts
    put(
        monkeypatch, "workload", "blobs", WorkloadSpec(knowing(lambda self, partition: torch.tensor([2, 2, partition])))
    )
    known = run(tmp_path, min_clients=1, **{"data.num_clients": 1}).directory / "split.json"
    table = {"clients": [{"name": "near", "examples": 90, "labels": {"0": 1, "2": 2}}]}
    assert json.loads(known.read_text()) == table
    named = type(
        "Named", (toy.Blobs,), {"classes": ("a", "b", "c"), "labels": lambda self, partition: torch.tensor([0])}
    )
    put(monkeypatch, "workload", "blobs", WorkloadSpec(named))
    assert json.loads((run(tmp_path).directory / "split.json").read_text())["classes"] == ["a", "b", "c"]


@pytest.mark.parametrize("expect_full", [False, True])
def test_a_run_says_and_records_which_data_it_has(tmp_path, monkeypatch, expect_full):
    part = DataSource("blobs", 90, "the package", "put all of them into FOLDER/blobs")
    named = type("Named", (toy.Blobs,), {"data_sources": lambda self, partition: [part]})
    put(monkeypatch, "workload", "blobs", WorkloadSpec(named))
    result = run(tmp_path, rounds=1, **{"data.expect_full": expect_full})
    assert result.manifest["data"] == [asdict(part)]  # once, though three parties have it
    events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert [event["sources"] for event in events if event["event"] == "data"] == [[asdict(part)]]
    assert any("put all of them" in event.get("note", "") for event in events) == expect_full


def knowing(labels):
    """The toy workload in a simulation that knows labels; a class of its own, since isinstance caches by class."""
    return type("Knowing", (toy.Blobs,), {"labels": labels})


def test_labels_that_are_no_classes_or_nowhere_are_not_counted():
    def nowhere(self, partition):
        raise DataError("no labels")

    assert [client["labels"] for client in partition_statistics(knowing(nowhere)(), 2)] == [None, None]
    for labels in (torch.zeros(90), torch.zeros(90, 4, 4, dtype=torch.long)):
        assert partition_statistics(knowing(lambda self, partition, y=labels: y)(), 1) == [
            {"name": "near", "examples": 90, "labels": None}
        ]


def test_same_seed_same_bits_and_another_seed_others(tmp_path):
    first, again, other = run(tmp_path), run(tmp_path), run(tmp_path, seed=1)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert first.directory != again.directory  # nothing is overwritten


def test_ambient_random_state_changes_nothing(tmp_path):
    first = run(tmp_path)
    torch.manual_seed(12345)
    assert run(tmp_path).weights_sha256 == first.weights_sha256


def test_two_runs_in_two_threads_have_the_bits_that_each_has_alone(tmp_path):
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), logging.getLogger("flwr").level
    preset = toy.write_preset(tmp_path)
    alone = [fedlab.run(preset, runs=tmp_path / "alone", seed=seed).weights_sha256 for seed in (0, 1)]
    begin = Barrier(2)

    def run_both_at_once(seed):
        begin.wait()
        return fedlab.run(preset, runs=tmp_path / "threads", seed=seed).weights_sha256

    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("always")
        together = list(pool.map(run_both_at_once, (0, 1)))
    assert together == alone
    assert [one.category for one in said] == [WaitingWarning]
    assert "waits for a run in another thread" in str(said[0].message)
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode(), logging.getLogger("flwr").level) == before


def test_the_process_stays_as_it_was(tmp_path):
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), logging.getLogger("flwr").level
    run(tmp_path)
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode(), logging.getLogger("flwr").level) == before


def test_an_unknown_preset_has_a_suggest(tmp_path):
    with pytest.raises(ConfigError, match="unknown preset 'dualadapt-digit'; did you mean 'dualadapt-digits'"):
        fedlab.run("dualadapt-digit", runs=tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        fedlab.run(str(tmp_path / "none.toml"), runs=tmp_path)


def test_a_missing_data_root_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        fedlab.run("dualadapt-digits", runs=tmp_path / "runs", overrides={"data.root": str(tmp_path / "none")})
    assert not (tmp_path / "runs").exists()


def test_an_operation_that_a_gpu_cannot_repeat_is_found():
    scores, labels = torch.zeros(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.long)
    with NotDeterministic() as operations:
        by_pixel(scores).logsumexp(1).sum().backward()
        torch.nn.functional.cross_entropy(by_pixel(scores), labels.flatten()).backward()
        torch.bincount(labels.flatten(), minlength=3)
    assert operations.found == set()
    with NotDeterministic() as operations:
        torch.nn.functional.cross_entropy(scores, labels).backward()
        torch.bincount(labels.flatten(), weights=torch.ones(16))
    assert operations.found == {"nll_loss2d_forward", "nll_loss2d_backward", "bincount"}


@pytest.mark.engine
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_runs_one_tiny_round(tmp_path, preset, monkeypatch):
    overrides = tiny_round(preset)
    try:
        launch.prepare(preset, overrides)
    except DataError as missing:
        if not FULL:
            pytest.skip(f"set FEDLAB_DATA: {missing}")
        monkeypatch.setenv("FEDLAB_DATA", FULL)
    with NotDeterministic() as operations:
        result = fedlab.run(preset, runs=tmp_path, overrides=overrides)
    assert operations.found == set()
    last = result.rounds[-1]
    assert last["round"] == 1
    assert last["failures"] == []  # the limits on a reply are far from what an honest client sends
    assert all(
        0 <= value <= 1
        for values in last["clients"].values()
        for name, value in values.items()
        if name.startswith("accuracy")
    )


def test_launch_knows_every_section():
    assert {"", "server", "client", "ray", "digits", "dualadapt", "source_only", "fedavg", "fedprox"} <= set(
        registry.all_sections()
    )


@pytest.mark.engine
@pytest.mark.parametrize("wire", ["float16", "int8"])
def test_a_coarse_wire_format_costs_fewer_bytes_and_little_accuracy(tmp_path, wire):
    full, coarse = run(tmp_path), run(tmp_path, **{"comm.compression": wire})
    assert coarse.bytes("train_up") < full.bytes("train_up")
    assert coarse.rounds[-1]["mean"]["accuracy_average"] == pytest.approx(
        full.rounds[-1]["mean"]["accuracy_average"], abs=0.1
    )
    assert all(record["failures"] == [] for record in coarse.rounds)
