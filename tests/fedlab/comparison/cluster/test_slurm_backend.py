"""Cells as jobs of Slurm, whose commands are stand-ins that run a job on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading

import cloudpickle
import pytest
from typer.testing import CliRunner

import fedlab
import toy
from fedlab import launch
from fedlab.cli.app import app
from fedlab.comparison.cluster import slurm_backend
from fedlab.comparison.cluster.backends import find_backend
from fedlab.comparison.preset_work import PresetWork
from fedlab.comparison.workers import Task
from fedlab.errors import ConfigError, RunError
from slurm import StandInSlurm

pytest.importorskip("submitit")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    found = StandInSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", found.path)
    return found


def tasks(folder, *seeds):
    return [
        Task(folder / "cells" / f"a-{seed}", PresetWork(launch.prepare(toy.PLUGIN, {"seed": seed}))) for seed in seeds
    ]


def backend_of(folder, all_tasks, details="slurm"):
    folder.mkdir(exist_ok=True)
    backend = find_backend(details)
    backend.reach()
    assert backend.check(all_tasks) == len(all_tasks)
    backend.open(folder)
    return backend


@pytest.mark.engine
def test_a_cell_runs_as_a_job_and_has_the_bits_of_this_machine(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset = toy.write_preset(tmp_path, **{**toy.PLUGIN, "rounds": 1})
    arguments = ["compare", preset, "--strategies", "source_only", "--seeds", "1", "device=cpu"]
    result = CliRunner().invoke(app, [*arguments, "--on", "slurm:partition=gpu,time=1-0,nodelist=a,b,exclusive=true"])
    assert result.exit_code == 0, f"{result.output}\n{slurm.logs()}"
    assert "up to 1 at a time on Slurm" in result.output
    comparison = fedlab.Comparison.read(tmp_path / "comparisons" / "toy")
    ((cell, remote),) = comparison.results
    assert cell.device.startswith("cpu (")
    (script,) = slurm.scripts()
    lines = {line.removeprefix("#SBATCH ") for line in script.splitlines()}
    assert {"--partition=gpu", "--time=1440", "--nodelist=a,b", "--exclusive", "--cpus-per-task=1"} <= lines
    here = CliRunner().invoke(app, [*arguments, "--jobs", "1", "--out", "here"])
    assert here.exit_code == 0, here.output
    assert fedlab.Comparison.read("here").results[0][1].weights_sha256 == remote.weights_sha256


def test_a_refused_job_is_told_in_the_words_of_sbatch(slurm, tmp_path):
    slurm.refuse("sbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job submission failed\n")
    (task,) = tasks(tmp_path, 0)
    backend = backend_of(tmp_path, [task])
    with pytest.raises(RunError, match="sbatch: error: invalid partition specified: gpuu sbatch: error: Batch job"):
        backend.submit(task)


def test_jobs_get_the_variables_of_trackers_and_no_script_names_a_value(slurm, tmp_path, monkeypatch):
    given = {"WANDB_API_KEY": "secret-1", "MLFLOW_TRACKING_TOKEN": "secret-2", "FEDLAB_OWN": "secret-3"}
    for name, value in {**given, "SBATCH_EXPORT": "NONE"}.items():
        monkeypatch.setenv(name, value)
    (task,) = tasks(tmp_path, 0)
    backend = backend_of(tmp_path, [task])
    backend.submit(task)
    backend.close()
    (handed,), (script,) = slurm.environments(), slurm.scripts()
    assert {f"{name}={value}" for name, value in given.items()} <= handed and "SBATCH_EXPORT=ALL" in handed
    assert any(line.startswith("PYTHONPATH=") and str(toy.__file__).rpartition("/")[0] in line for line in handed)
    assert "secret" not in script and os.environ["SBATCH_EXPORT"] == "NONE"


def test_jobs_of_an_earlier_command_are_found_again_and_a_limit_of_jobs_is_waited_for(slurm, tmp_path):
    first, second = tasks(tmp_path, 0, 1)
    with subprocess.Popen(["sleep", "60"]) as job:
        slurm.hold("7", job.pid)
        folder = tmp_path / "comparison"
        (folder / "slurm").mkdir(parents=True)
        (folder / "slurm" / "jobs.json").write_text(json.dumps({"a-0": "7", "a-9": "8"}))
        backend = backend_of(folder, [first, second])
        slurm.refuse("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        backend.submit(first)  # is job 7, whatever sbatch says
        backend.submit(second)
        assert backend.ended(0.0) == []
        (folder / "slurm" / "7_0_result.pkl").write_bytes(cloudpickle.dumps(("success", None)))
        assert backend.ended(0.0) == [(first, None)]
        with pytest.raises(RunError, match="QOSMaxSubmitJobPerUserLimit"):  # nothing of ours is queued any more
            backend.ended(0.0)
        job.kill()
    assert json.loads((folder / "slurm" / "jobs.json").read_text()) == {}


def test_jobs_of_this_command_are_cancelled_and_others_stay(slurm, tmp_path):
    (task,) = tasks(tmp_path, 0)
    folder = tmp_path / "comparison"
    (folder / "slurm").mkdir(parents=True)
    with (
        subprocess.Popen(["sleep", "60"], start_new_session=True) as own,
        subprocess.Popen(["sleep", "60"], start_new_session=True) as other,
    ):
        slurm.hold("7", own.pid)
        slurm.hold("8", other.pid)
        (folder / "slurm" / "jobs.json").write_text(json.dumps({"a-0": "7", "b-0": "8"}))
        backend = backend_of(folder, [task])
        backend.submit(task)
        threading.Thread(target=own.wait).start()  # Slurm would see it end, too
        backend.close()
        assert own.wait(10) == -signal.SIGTERM and other.poll() is None
        other.kill()
    assert json.loads((folder / "slurm" / "jobs.json").read_text()) == {"b-0": "8"}


def test_a_job_that_vanishes_is_told_with_its_state(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_backend, "QUEUE_SECONDS", 0.0)
    (task,) = tasks(tmp_path, 0)
    folder = tmp_path / "comparison"
    (folder / "slurm").mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as job:
        slurm.hold("7", job.pid)
        (folder / "slurm" / "jobs.json").write_text(json.dumps({"a-0": "7"}))
        backend = backend_of(folder, [task])
        backend.submit(task)
        job.kill()
        job.wait()
    ((ended, error),) = [one for _ in range(2) for one in backend.ended(0.0)]
    assert ended is task and "Slurm job 7 ended as OUT_OF_MEMORY" in error


def test_a_machine_without_slurm_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="not on the PATH: sbatch, srun, squeue, scancel; run this on a login node"):
        find_backend("slurm").reach()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("slurm:gpu", "write options of sbatch: --on slurm:partition=gpu"),
        ("slurm:time=2h", "time is '2h'; write minutes"),
        ("slurm:time=0", "time is '0'"),
        ("slrum", "did you mean 'slurm'"),
        ("ray:127.0.0.1:1,gpu=1", "--on ray has no 'gpu'; did you mean 'gpus'"),
        ("ray:gpus=many", "gpus is 'many'; a number is expected"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        find_backend(text)
