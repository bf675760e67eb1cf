"""A comparison from its request to its tables, on the toy workload in this process; and several processes at once."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedlab
import toy
from commands import TINY
from disks import full_disk
from fedlab import launch
from fedlab.comparison import cells as running
from fedlab.comparison import workers
from fedlab.comparison.plan import ComparisonRequest, at_once, plan_comparison, visible_gpus
from fedlab.comparison.preset_work import PresetWork
from fedlab.comparison.result import Comparison
from fedlab.errors import ConfigError, RunError
from fedlab.runs.directory import RunDirectory
from in_process import call
from tables import put
from waiting import wait_until

SUPPORT = Path(__file__).parents[2] / "support"


SHORT = {"rounds": 1, "blobs.domains": "near"}


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch, tmp_path):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def preset(tmp_path):
    return toy.write_preset(tmp_path)


@pytest.mark.engine
def test_cells_are_kept_and_are_the_bits_of_runs_on_their_own(preset, tmp_path, monkeypatch):
    frame = fedlab.compare(preset, "source_only,dualadapt,oracle", seeds=1, overrides=SHORT, jobs=1)
    assert frame.attrs["directory"] == str(tmp_path / "comparisons" / "toy")
    assert set(frame["label"]) == {"source_only", "dualadapt", "oracle"}
    comparison = fedlab.Comparison.read(frame.attrs["directory"])
    for cell, result in comparison.results:
        labels = {"blobs.client_labels": cell.strategy == "oracle"}
        control = {"dualadapt.source_only_twin": False} if cell.strategy == "dualadapt" else {}
        alone = fedlab.run(preset, overrides={**SHORT, **labels, **control}, strategy=cell.strategy, threads=1)
        assert result.weights_sha256 == alone.weights_sha256
        kept = {path.name for path in (comparison.path(cell) / "checkpoints").iterdir()}
        assert kept == {"round-0.pt", "round-1.pt"}
    assert len(list((comparison.directory / "pretrained").glob("*.pt"))) == 1

    def never(*_):
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr(running, "run_cell", never)
    again = fedlab.compare(preset, "source_only,dualadapt,oracle", seeds=1, overrides=SHORT, jobs=1)
    assert again.equals(frame)


@pytest.mark.engine
def test_a_failed_cell_is_told_and_the_rest_kept(preset, tmp_path, monkeypatch):
    options = ("--strategies", "source_only,bad=dualadapt", "--seeds", 1, "--jobs", 1, "rounds=1", "blobs.broken=0")
    result = call("compare", preset, *options, code=1)
    assert "1 of 2 cells failed; the others are kept" in result.stderr
    assert "the disk of this client is gone" in result.stderr
    assert "source_only" in result.output
    comparison = fedlab.Comparison.read("comparisons/toy")
    assert [(cell.label, cell.status) for cell in comparison.cells] == [("source_only", "finished"), ("bad", "failed")]
    with pytest.raises(RunError, match="1 of 2 cells failed"):
        fedlab.compare(
            preset,
            ["source_only", "bad=dualadapt"],
            seeds=1,
            jobs=1,
            overrides={"rounds": 1, "blobs.broken": 0},
        )


@pytest.mark.engine
def test_a_score_of_the_model_alone_is_compared_as_it_is(preset, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SCRIBBLES)
    frame = fedlab.compare(preset, "source_only,dualadapt", seeds=2, jobs=1, overrides={"sample_every": 2, "rounds": 3})
    comparison = fedlab.Comparison.read(frame.attrs["directory"])
    assert comparison.metric == "size" and comparison.metric_of(comparison.results[0][1]) == ""
    assert set(frame["client"]) == {"global model"} and comparison.domains()["client"].unique() == ["global model"]
    own = frame[(frame["label"] == "source_only") & (frame["seed"] == 1)]
    result = next(result for cell, result in comparison.results if (cell.label, cell.seed) == ("source_only", 1))
    assert list(own["round"]) == [0, 2, 3]  # rounds without a score are left out, their bytes are not
    assert list(own["score"]) == [result.rounds[at]["score"]["size"] for at in (0, 2, 3)]
    assert own["bytes_down"].iloc[-1] == result.bytes("train_down")
    assert list(comparison.summary()["metric"]) == ["size", "size"]


def test_a_score_that_lacks_the_metric_in_the_last_round_is_not_judged_by_an_earlier_one(preset, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SCRIBBLES)
    frame = fedlab.compare(preset, "source_only", seeds=1, jobs=1, overrides={"rounds": 2})
    comparison = fedlab.Comparison.read(frame.attrs["directory"])
    run = RunDirectory.open(comparison.path(comparison.cells[0]))
    records = run.rounds()
    records[-1]["score"] = {"other": 1.0}
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = fedlab.Comparison.read(comparison.directory).summary().iloc[0]
    assert math.isnan(summary["mean"]) and summary["rounds"] == 2


def test_what_no_metric_can_be_is_refused_before_anything_runs(preset, tmp_path):
    for metric, target, sentence in (
        ("accuracy_average", None, "accuracy_average is of one predictor; write accuracy"),
        ("size", 3.0, "whether more or less size is better is not known"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            plan_comparison(ComparisonRequest(preset, "dualadapt", 1, SHORT, metric=metric, target=target))


def test_gpus_are_called_what_the_environment_calls_them(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8f1c")
    assert visible_gpus() == ["2", "GPU-8f1c"]


def test_another_metric_can_be_asked_for_and_one_that_nobody_reports_is_named(preset):
    options = {"seeds": 1, "jobs": 1, "overrides": SHORT}
    frame = fedlab.compare(preset, "source_only", metric="loss", **options)
    assert list(frame["score"]) == list(frame["loss"])
    with pytest.raises(
        ConfigError, match=r"no run of source_only reports 'psnr'; set --metric to one of accuracy, loss\. Nothing"
    ):
        fedlab.compare(preset, "source_only", metric="psnr", **options)


def test_a_run_may_go_on_from_anothers_checkpoint_with_its_rounds(preset, tmp_path):
    overrides = {"blobs.domains": "near", "rounds": 3, "checkpoint.keep": 3}
    first = fedlab.run(preset, runs=tmp_path, name="first", overrides=overrides)
    begun = running.CheckpointRef(first.directory, 1)
    other = running.run_or_resume(tmp_path / "other-0", lambda: launch.prepare(preset, overrides), begun)
    assert other.weights_sha256 == first.weights_sha256
    assert [record["round"] for record in other.rounds] == [0, 1, 2, 3]
    assert other.rounds[:2] == first.rounds[:2]


def test_a_bug_costs_its_cell_and_leaves_its_traceback(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "resume", lambda path: 1 / 0)
    path = tmp_path / "cells" / "a-0"
    said = running.run_cell(path, PresetWork(launch.prepare(preset, {})))
    assert said.startswith("ZeroDivisionError: division by zero; the traceback is in")
    assert "1 / 0" in (path / "traceback.txt").read_text()


def test_a_bug_on_a_full_disk_still_costs_its_cell_only(preset, tmp_path, monkeypatch):
    config = launch.prepare(preset, {})
    monkeypatch.setattr(running, "run_or_resume", lambda path, config: 1 / 0)
    with full_disk():
        said = running.run_cell(tmp_path / "cells" / "a-0", PresetWork(config))
    assert said.startswith("ZeroDivisionError") and "could not be written" in said and "1 / 0" in said


def test_what_a_kill_left_of_a_beginning_is_made_anew(preset, tmp_path):
    path = tmp_path / "cells" / "a-0"
    path.mkdir(parents=True)
    (path / "config.toml").write_text("half")
    assert running.run_cell(path, PresetWork(launch.prepare(preset, SHORT))) is None
    assert [entry.name for entry in path.parent.iterdir()] == ["a-0"]
    assert running.finished(path)


def test_the_command_goes_on_with_what_it_was_asked_for(preset):
    request = ComparisonRequest(
        preset,
        ["source_only", "A=dualadapt"],
        [0, 2],
        {"blobs.domains": "a,b", "rounds": [1, 2]},
        budget={"bytes": 5e6},
    )
    plan = plan_comparison(request)
    assert plan.comparison.command == (
        f"fedlab compare {preset} blobs.domains=a,b rounds=1,2 --strategies source_only,A=dualadapt --seeds 0,2, "
        "--budget bytes=5000000"
    )
    assert plan.comparison.baseline == "source_only"
    assert plan.comparison.grid == {"rounds": ["1", "2"]}


def test_options_of_a_workload_that_the_preset_names_by_import_path_make_a_grid(tmp_path):
    preset = toy.write_preset(tmp_path, **toy.PLUGIN)
    plan = plan_comparison(ComparisonRequest(preset, "source_only", 1, {"toy.domains": "a,b|c"}))
    assert plan.comparison.grid == {"toy.domains": ["a,b", "c"]}
    assert "'toy.domains=a,b|c'" in plan.comparison.command
    with pytest.raises(ConfigError, match="unknown option 'toy.domain'; did you mean 'toy.domains'"):
        plan_comparison(ComparisonRequest(preset, "source_only", 1, {"toy.domain": "a"}))


def test_presets_of_one_module_have_folders_with_the_names_of_their_runs(preset, tmp_path, monkeypatch):
    """No folder's name has a colon, and no two presets of a package share one."""
    (tmp_path / "two_of.py").write_text("import toy\nPRESET = toy.PLUGIN\nSHORT = {**toy.PLUGIN, 'rounds': 1}\n")
    monkeypatch.chdir(tmp_path)
    plans = [plan_comparison(ComparisonRequest(f"two_of:{of}", "source_only", 1)) for of in ("PRESET", "SHORT")]
    assert [plan.comparison.directory.name for plan in plans] == ["two_of", "short"]


def test_jobs_times_threads_are_no_more_than_the_cores(preset, monkeypatch):
    monkeypatch.setattr(running, "cores", lambda: 8)
    assert plan_comparison(ComparisonRequest(preset, "source_only", 5)).jobs == 5
    assert plan_comparison(ComparisonRequest(preset, "source_only", 20)).jobs == 8
    wide = plan_comparison(ComparisonRequest(preset, "source_only", 20, {"threads": 3}))
    assert (wide.jobs, wide.threads) == (2, 3)
    with pytest.raises(ConfigError, match="ask for 1 to 2"):
        plan_comparison(ComparisonRequest(preset, "source_only", 20, {"threads": 3}, jobs=3))
    for backend in (None, AnyCluster()):  # a cluster that is given no cell would be waited for without an end
        with pytest.raises(ConfigError, match="--jobs -1 runs nothing"):
            at_once(-1, list(wide.tasks.values()), backend)


def test_numbers_of_numpy_are_facts_that_can_be_written(preset, tmp_path):
    request = ComparisonRequest(
        preset,
        "source_only",
        np.array([3, 4]),
        {"server.steps": np.int64(2)},
        target=np.float32(0.5),
        budget={"rounds": np.int64(2)},
        out=tmp_path,
    )
    made = plan_comparison(request).comparison
    made.write()
    assert Comparison.read(tmp_path) == made and (made.target, made.budget) == (0.5, {"rounds": 2.0})


class AnyCluster:
    def check(self, tasks):
        return len(tasks)


def start(tmp_path, preset, *options):
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import sys; sys.path.insert(0, {str(SUPPORT)!r}); import toy; toy.register()\n"
        "from fedlab.cli.app import main; main()"
    )
    command = [sys.executable, "-c", script, "compare", preset, "--strategies", "source_only,dualadapt", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)


@pytest.mark.engine
def test_interrupted_and_killed_the_same_command_ends_at_the_same_table(preset, tmp_path):
    for number, last in ((signal.SIGINT, 2), (signal.SIGKILL, 4)):
        process = start(tmp_path, preset, "--seeds", "1", "--jobs", "1", "rounds=9", "blobs.domains=near")
        logs = "comparisons/toy/cells/*/metrics.jsonl"
        reached = lambda logs=logs, last=last: any(  # noqa: E731
            f'"round": {last},' in log.read_text() for log in tmp_path.glob(logs)
        )
        wait_until(reached, f"round {last}", process=process)
        os.kill(process.pid, number)
        _, error = process.communicate(timeout=30)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "The same command goes on:\nfedlab compare" in error
            assert "Traceback" not in error
    options = {"seeds": 1, "overrides": {"rounds": 9, "blobs.domains": "near"}, "jobs": 1}
    frames = [fedlab.compare(preset, "source_only,dualadapt", out=out, **options) for out in (None, tmp_path / "whole")]
    hashes = [
        {cell.label: result.weights_sha256 for cell, result in fedlab.Comparison.read(frame.attrs["directory"]).results}
        for frame in frames
    ]
    assert hashes[0] == hashes[1]
    assert frames[0].drop(columns="seconds").equals(frames[1].drop(columns="seconds"))


@pytest.mark.engine
def test_several_at_once_have_the_bits_of_one_after_another_and_a_dead_process_costs_its_cell(tmp_path):
    overrides = {**TINY, "digits.targets": "optdigits"}
    tasks = [
        workers.Task(
            tmp_path / f"{seed}-{seed}", PresetWork(launch.prepare("dualadapt-digits", {**overrides, "seed": seed}))
        )
        for seed in (0, 1)
    ]
    bad = workers.Task(tmp_path / "x-2", PresetWork(launch.prepare({"workload": "blobs", **SHORT}, {})))
    began = []
    found = dict(workers.run_parallel([*tasks, bad], 2, [], tmp_path / "log", began.append))
    assert {task.path.name for task in began} == {"0-0", "1-1", "x-2"}
    assert [found[task] for task in tasks] == [None, None]
    assert "unknown workload 'blobs'" in found[bad]  # of this process alone
    assert running.run_cell(tmp_path / "alone-1", tasks[1].work) is None
    read = [fedlab.Result.read(path).weights_sha256 for path in (tasks[1].path, tmp_path / "alone-1")]
    assert read[0] == read[1]


def test_a_process_that_dies_is_told_and_another_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = dict(
        workers.run_parallel(
            [
                workers.Task(tmp_path / name, PresetWork(launch.prepare("dualadapt-digits", {})))
                for name in ("a-0", "b-1")
            ],
            1,
            ["3"],
            tmp_path / "log",
            lambda task: None,
        )
    )
    assert len(found) == 2
    assert all("its process ended with exit status 1" in error for error in found.values())
