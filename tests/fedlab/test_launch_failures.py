"""Failures during a run: whose fault they are, the sentence that says so, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import fedlab
import toy
from fedlab.errors import FedlabError, RunError
from fedlab.exits import SystemExitError
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from fedlab.strategies import dualadapt
from fedlab.strategies.protocol import ClientFunctions, round_of
from fedlab.workload import WorkloadSpec
from tables import put


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


def run(tmp_path, **changes):
    return fedlab.run(toy.write_preset(tmp_path, **changes), runs=tmp_path / "runs")


@pytest.mark.parametrize("whose", ["server", "client"])
def test_a_gpu_whose_memory_is_full_is_a_sentence(tmp_path, monkeypatch, whose):
    def loss(self, model, batch):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80 GiB of which 1 GiB is "
            "free."
        )

    put(monkeypatch, "workload", "blobs", WorkloadSpec(type("Large", (toy.Blobs,), {"loss": loss})))
    changes = {"strategy": "fedavg", "server.pretrain_steps": int(whose == "server"), "blobs.client_labels": True}
    with pytest.raises(RunError, match=r"memory of GPU 0 is full: 2.00 GiB were asked for, 1 GiB of 80 GiB are free"):
        run(tmp_path, **changes)
    manifest = json.loads((tmp_path / "runs" / "toy-0" / "manifest.json").read_text())
    assert manifest["status"] == "failed" and "client.batch_size" in manifest["error"]
    assert "Traceback" not in manifest["error"]


def test_a_run_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="no run directory can be made in"):
        fedlab.run(toy.write_preset(tmp_path), runs=tmp_path / "file")


def test_a_client_that_raises_is_named_with_its_traceback_and_nothing_is_lost(tmp_path):
    with pytest.raises(RunError) as caught:
        run(tmp_path, **{"blobs.broken": 1})
    message = str(caught.value)
    assert "1 of 2 clients failed: partition 1 (far)" in message
    assert "OSError: the disk of this client is gone" in message
    directory = RunDirectory.open(tmp_path / "runs" / "toy-0")
    assert directory.manifest()["status"] == "failed"
    assert "far" in directory.manifest()["error"]
    assert [record["round"] for record in directory.rounds()] == []  # it broke before round 0 was tested
    assert (directory.path / "config.toml").exists()


def test_a_call_of_sys_exit_is_a_failure_of_the_client_or_of_the_server_that_calls_it(tmp_path, monkeypatch):
    def ends(self, model, batch):
        raise SystemExit(0)

    monkeypatch.setattr(toy.Blobs, "loss", ends)
    alone = {"blobs.client_labels": True, "server.pretrain_steps": 0}
    with pytest.raises(RunError, match=r"(?s)all clients failed: partition 0 \(near\).*sys.exit\(0\) was called in"):
        run(tmp_path, strategy="fedavg", name="client", **alone)
    with pytest.raises(SystemExitError, match="test_launch"):
        run(tmp_path, strategy="source_only", name="server")
    for name in ("client", "server"):
        manifest = RunDirectory.open(tmp_path / "runs" / f"{name}-0").manifest()
        assert manifest["status"] == "failed" and "sys.exit(0)" in manifest["error"]


def test_a_failing_client_is_tolerated_named_and_counted_when_fewer_are_needed(tmp_path):
    result = run(tmp_path, min_clients=1, **{"blobs.broken": 1, "strategy": "fedavg", "blobs.client_labels": True})
    last = result.rounds[-1]
    assert [(failure["client"], failure["partition"]) for failure in last["failures"]] == [("far", 1)]
    assert "disk of this client" in last["failures"][0]["reason"]
    assert set(last["clients"]) == {"near", "far"}  # it cannot train, but it can test


def test_dualadapt_goes_on_when_a_client_fails_before_it_has_a_head(tmp_path, monkeypatch):
    train = dualadapt.train

    def fails_in_round_1(workload, message, context):
        if context.partition == 1 and round_of(message) == 1:
            raise OSError("the disk of this client is gone")
        return train(workload, message, context)

    half = ClientFunctions(fails_in_round_1, dualadapt.evaluate)
    put(monkeypatch, "strategy", "dualadapt", replace(dualadapt.SPEC, client=half))
    first, second = run(tmp_path, min_clients=1).rounds[1:3]
    assert [failure["client"] for failure in first["failures"]] == ["far"]
    assert "accuracy_local" not in first["clients"]["far"]
    assert first["mean"]["accuracy_local"] == first["clients"]["near"]["accuracy_local"]  # of those that have one
    assert second["failures"] == []
    assert "accuracy_local" in second["clients"]["far"]


@pytest.mark.parametrize(
    ("joins", "answers_first", "expected"),
    [(1, False, [1, 2, 3, 4, 5, 6]), (2, False, [1, 3, 4, 5, 6]), (2, True, [1, 5, 6])],
)
def test_a_client_that_always_fails_does_not_keep_the_others_from_dualadapt_s_training(
    tmp_path, monkeypatch, joins, answers_first, expected
):
    train, trained = dualadapt.train, []

    def fails(workload, message, context):
        reply = train(workload, message, context)
        if context.partition == 1 and not (answers_first and round_of(message) == joins):  # it sends its mixture alone
            raise OSError("the disk of this client is gone")
        trained.append((round_of(message), context.partition))
        return reply

    half = ClientFunctions(fails, dualadapt.evaluate)
    put(monkeypatch, "strategy", "dualadapt", replace(dualadapt.SPEC, client=half))
    run(tmp_path, min_clients=1, rounds=6, **{"dualadapt.onboarding": 2, "join_rounds": f"far={joins}"})
    assert [server_round for server_round, partition in trained if partition == 0] == expected


def test_all_clients_failing_stops_the_run(tmp_path):
    with pytest.raises(RunError, match="all clients failed: partition 0"):
        run(tmp_path, min_clients=1, **{"blobs.broken": 0, "blobs.domains": "near"})


def test_a_loss_that_is_not_finite_stops_the_run_in_its_round(tmp_path):
    with pytest.raises(RunError, match="the loss is nan at step"):
        run(tmp_path, **{"blobs.poison": True, "server.batch_size": 90})


def test_no_run_directory_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match="is no run directory"):
        fedlab.resume(tmp_path)
    with pytest.raises(FedlabError):
        Result.read(tmp_path / "nothing")
