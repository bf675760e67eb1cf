"""Whole runs that end before their time, and go on to the same bits: kills, interrupts, full disks, failures."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

import fedlab
import toy
from disks import full_disk
from fedlab import launch
from fedlab.errors import RunError
from fedlab.report import run_page
from fedlab.runs.checkpoints import Checkpoints
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from tables import put

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


def run(tmp_path, **changes):
    return fedlab.run(toy.write_preset(tmp_path, **changes), runs=tmp_path / "runs")


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
