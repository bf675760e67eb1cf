"""Whole runs from the composition root: resuming to the same bits, errors during a run."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import pytest
import torch

import fedlab
import toy
from benchmarks.gpu.tiny import tiny_round
from cuda_operations import NotDeterministic
from disks import full_disk
from fedlab import launch, registry
from fedlab.config.presets import preset_names
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, DataError, FedlabError, RunError
from fedlab.exits import SystemExitError
from fedlab.report import run_page
from fedlab.run_data import partition_statistics
from fedlab.runs.checkpoints import Checkpoints
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from fedlab.seeds import WaitingWarning
from fedlab.strategies import dualadapt
from fedlab.strategies.protocol import ClientFunctions, round_of
from fedlab.workload import WorkloadSpec
from fedlab.workloads.camvid import by_pixel
from tables import put

SUPPORT = Path(__file__).parents[1] / "support"
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


KILL = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import toy
toy.register()
from fedlab import launch
from fedlab.runs.checkpoints import Checkpoints
from fedlab.runs import directory as directories
import fedlab.server.app, fedlab.client.app, fedlab.trackers.tensorboard, fedlab.report

config = launch.prepare({preset!r}, {{}})
append, checkpoint = directories.append_lines, Checkpoints.save

def child(directory, deadly):
    count = 0
    def tick(write):
        def wrapped(where, *args, **kwargs):
            nonlocal count
            count += 1
            if count == deadly:  # half a line is on the disk when the kill comes
                if write is append:
                    where.write(b'{{"torn": ')
                os.kill(os.getpid(), signal.SIGKILL)
            return write(where, *args, **kwargs)
        return wrapped
    directories.append_lines, Checkpoints.save = tick(append), tick(checkpoint)
    launch.run_engine(directory)

deadly = 1
while True:
    directory = directories.RunDirectory.create({runs!r}, config)
    if (pid := os.fork()) == 0:
        try:
            child(directory, deadly)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        break
    before = directory.manifest()["status"]
    result = launch.resume(directory.path)
    print(deadly, before, len(result.rounds), result.weights_sha256, flush=True)
    deadly += {stride}
"""


@pytest.mark.engine
@pytest.mark.parametrize("strategy", ["dualadapt", "fedprox"])
def test_killed_at_any_moment_it_resumes_to_the_same_bits(tmp_path, strategy):
    """SIGKILL at every fifth write of the run directory, in every round and phase, half a line on the disk."""
    labeled = {"blobs.client_labels": strategy == "fedprox"}
    preset = toy.write_preset(tmp_path, strategy=strategy, rounds=3, **labeled)
    expected = fedlab.run(preset, runs=tmp_path / "whole")
    script = KILL.format(tests=str(SUPPORT), preset=preset, runs=tmp_path / "runs", stride=5)
    script = script.replace("PosixPath", "__import__('pathlib').PosixPath")
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert output.returncode == 0, output.stderr
    kills = [line.split() for line in output.stdout.splitlines()]
    assert len(kills) >= 6
    assert {(rounds, digest) for _, _, rounds, digest in kills} == {("4", expected.weights_sha256)}


def test_an_interrupt_leaves_a_run_that_resumes(tmp_path, monkeypatch):
    preset = toy.write_preset(tmp_path)
    expected = fedlab.run(preset, runs=tmp_path / "whole").weights_sha256
    log_round = RunDirectory.log_round

    def interrupt(self, record):
        log_round(self, record)
        if record["round"] == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "log_round", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fedlab.run(preset, runs=tmp_path / "runs")
    monkeypatch.undo()
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    directory = RunDirectory.open(tmp_path / "runs" / "toy-0")
    assert directory.manifest()["status"] == "interrupted"
    assert fedlab.resume(directory.path).weights_sha256 == expected
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


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


def test_resuming_a_finished_run_only_reads_it(tmp_path):
    result = run(tmp_path)
    before = (result.directory / "manifest.json").read_bytes()
    assert fedlab.resume(result.directory).weights_sha256 == result.weights_sha256
    assert (result.directory / "manifest.json").read_bytes() == before


@pytest.mark.engine
def test_two_processes_cannot_write_one_run(tmp_path):
    result = run(tmp_path)
    directory = RunDirectory.open(result.directory)
    directory.update_manifest(status="interrupted")
    held = (
        "from fedlab.runs.directory import RunDirectory\n"
        f"with RunDirectory.open({str(result.directory)!r}):\n print(1, flush=True)\n input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "1\n"
    with pytest.raises(RunError, match="in use by another process"):
        fedlab.resume(result.directory)
    holder.communicate("\n", timeout=20)


def test_a_run_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="no run directory can be made in"):
        fedlab.run(toy.write_preset(tmp_path), runs=tmp_path / "file")


def test_a_full_disk_is_a_sentence_and_the_run_resumes(tmp_path, monkeypatch):
    preset = toy.write_preset(tmp_path)
    expected = fedlab.run(preset, runs=tmp_path / "whole").weights_sha256
    checkpoint, disk = Checkpoints.save, ExitStack()

    def full(self, server_round, state, *how_many):
        if server_round == 2:
            disk.enter_context(full_disk())  # from now on nothing can be written, not even that nothing can
        checkpoint(self, server_round, state, *how_many)

    with monkeypatch.context() as patch, disk:
        patch.setattr(Checkpoints, "save", full)
        with pytest.raises(RunError, match=r"round-2.pt: file too large; .* is kept; after that, `fedlab resume"):
            fedlab.run(preset, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("**/*.tmp"))
    assert fedlab.resume(tmp_path / "runs" / "toy-0").weights_sha256 == expected


def test_a_page_that_cannot_be_written_is_a_sentence_and_is_made_later(tmp_path, monkeypatch):
    write, disk, directory = run_page.write_report, ExitStack(), tmp_path / "runs" / "toy-0"

    def full(*arguments):
        disk.enter_context(full_disk())
        return write(*arguments)

    with monkeypatch.context() as patch, disk:
        patch.setattr(run_page, "write_report", full)
        with pytest.raises(RunError, match=rf"kept in {directory}; its page could not be written .*`fedlab report"):
            fedlab.run(toy.write_preset(tmp_path, report=True), runs=tmp_path / "runs")
    page = directory / "report.html"
    assert not page.exists()
    assert len(fedlab.resume(directory).rounds) == 4 and page.exists()  # nothing is run again
    page.unlink()
    launch.write_page(Result.read(directory))
    assert page.exists()


def test_a_run_may_have_no_page_not_that_of_an_earlier_end_either(tmp_path):
    directory = run(tmp_path, report=True).directory
    page = directory / "report.html"
    assert page.exists()
    assert fedlab.resume(directory, rounds=4, report=False).rounds[-1]["round"] == 4 and not page.exists()
    assert fedlab.resume(directory).weights_sha256 and not page.exists()
    launch.write_page(Result.read(directory))
    assert page.exists()


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


# --- what goes wrong on the way ---


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


def test_a_run_that_failed_goes_on_from_its_checkpoint_once_mended(tmp_path, monkeypatch):
    preset = toy.write_preset(tmp_path)
    expected = fedlab.run(preset, runs=tmp_path / "whole").weights_sha256
    data = toy.Blobs.data
    monkeypatch.setattr(
        toy.Blobs,
        "data",
        lambda self, partition, split: toy.Blobs.fail(None) if _late(tmp_path) else data(self, partition, split),
    )
    with pytest.raises(RunError, match="all clients failed"):
        fedlab.run(preset, runs=tmp_path / "runs")
    directory = RunDirectory.open(tmp_path / "runs" / "toy-0")
    assert [record["round"] for record in directory.rounds()] == [0, 1]
    monkeypatch.undo()
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    assert fedlab.resume(directory.path).weights_sha256 == expected


def _late(tmp_path):
    log = tmp_path / "runs" / "toy-0" / "metrics.jsonl"
    return log.exists() and '"round": 1' in log.read_text()


def test_no_run_directory_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match="is no run directory"):
        fedlab.resume(tmp_path)
    with pytest.raises(FedlabError):
        Result.read(tmp_path / "nothing")


# --- whole-design tests ---


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
