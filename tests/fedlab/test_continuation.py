"""A run goes on for longer, and with nothing else that it did not begin with."""

from __future__ import annotations

import json

import pytest

import fedlab
import toy
from fedlab.continuation import ResumeWarning
from fedlab.errors import ConfigError
from fedlab.runs.directory import RunDirectory
from tables import put


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


def run(tmp_path, **changes):
    return fedlab.run(toy.write_preset(tmp_path, **{"rounds": 1, **changes}), runs=tmp_path / "runs")


def edit(directory, before, after):
    path = directory / "config.toml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


STEPS = {"lr_schedule": "step", "lr_step_rounds": 1, "lr_warmup_rounds": 1}


@pytest.mark.parametrize("strategy", ["dualadapt", "fedavg", "scaffold"])
def test_a_finished_run_goes_on_to_the_bits_of_a_longer_one(tmp_path, strategy):
    own = {} if strategy == "dualadapt" else {"blobs.client_labels": True, "strategy": strategy}
    own |= {f"client.{name}": value for name, value in STEPS.items()}
    table = {
        key: value for key, value in toy.SMALL.items() if strategy == "dualadapt" or not key.startswith("dualadapt")
    }
    long = fedlab.run({**table, **own, "name": "long", "rounds": 4}, runs=tmp_path)
    short = fedlab.run({**table, **own, "name": "short", "rounds": 3}, runs=tmp_path)
    longer = fedlab.resume(short.directory, rounds=4)
    assert longer.directory == short.directory
    assert [record["round"] for record in longer.rounds] == [0, 1, 2, 3, 4]
    assert longer.weights_sha256 == long.weights_sha256 != short.weights_sha256
    assert (longer.manifest["rounds"], longer.config["rounds"], longer.manifest["status"]) == (4, 4, "finished")
    assert fedlab.resume(short.directory).weights_sha256 == long.weights_sha256


def test_rounds_that_were_raised_in_the_file_are_done(tmp_path):
    directory = run(tmp_path).directory
    edit(directory, "rounds = 1\n", "rounds = 2\n")
    assert len(fedlab.resume(directory).rounds) == 3


def test_a_larger_budget_is_used_up(tmp_path):
    short = run(tmp_path, rounds=3, budget_bytes=1.0)
    assert (len(short.rounds), short.manifest["ended_by"]) == (2, "bytes")
    assert len(fedlab.resume(short.directory, rounds=4).rounds) == 2  # its bytes are used up
    longer = fedlab.resume(short.directory, budget_bytes=0)
    assert (len(longer.rounds), longer.manifest["ended_by"]) == (4, "rounds")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("seed", 5, "'seed' was 0 .* would be 5"),
        ("strategy", "fedbn", "'strategy' was 'dualadapt' .* would be 'fedbn'"),
        ("client.steps", 6, "'client.steps' was 5 .* would be 6"),
        ("threads", 2, "'threads' was 1 .* would be 2"),
        ("comm.compression", "int8", "'comm.compression' was 'float32'"),
        ("blobs.domains", "near,far,off", "'blobs.domains' was"),
    ],
)
@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_what_changes_results_is_refused_by_name(tmp_path, option, value, words, status):
    directory = run(tmp_path).directory
    RunDirectory.open(directory).update_manifest(status=status)
    before = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match=f"option {words}.*changes its results"):
        fedlab.resume(directory, overrides={option: value})
    assert {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("before", "after", "option"),
    [("seed = 0", "seed = 5", "seed"), ('strategy = "dualadapt"', 'strategy = "fedbn"', "strategy")],
)
def test_what_was_changed_in_the_file_is_refused_too(tmp_path, before, after, option):
    directory = run(tmp_path).directory
    edit(directory, before, after)
    with pytest.raises(ConfigError, match=f"option '{option}' was"):
        fedlab.resume(directory)


def test_what_changes_no_result_may_be_changed(tmp_path):
    directory = run(tmp_path).directory
    free = {"rounds": 2, "comm.idle_timeout": 7.0, "checkpoint.keep": 1, "min_clients": 1}
    result = fedlab.resume(directory, overrides=free)
    assert len(result.rounds) == 3
    assert {key: result.config[key] for key in free} == free


def test_the_engine_of_a_run_is_that_with_which_it_went_on(tmp_path):
    def engine(result):
        return result.manifest["engine"], result.manifest["engine_chosen"]

    began = run(tmp_path, engine="local")
    assert engine(began) == ("local", "inprocess")
    assert engine(fedlab.resume(began.directory, rounds=2, overrides={"engine": "inprocess"})) == ("inprocess", "")
    assert engine(fedlab.resume(began.directory, rounds=3, overrides={"engine": "local"})) == ("local", "inprocess")


def test_fewer_rounds_than_are_done_are_refused(tmp_path):
    directory = run(tmp_path, rounds=2).directory
    with pytest.raises(ConfigError, match="rounds=1, and this run has done 2"):
        fedlab.resume(directory, rounds=1)


def test_learning_rates_that_fall_with_the_rounds_are_named(tmp_path):
    directory = run(tmp_path, **{"server.final_lr_fraction": 0.5}).directory
    with pytest.warns(ResumeWarning, match="'server.final_lr_fraction' .* was 1 and is 2 now"):
        fedlab.resume(directory, rounds=2)


def test_a_finished_run_is_read_without_the_plugins_that_made_it(tmp_path, monkeypatch):
    result = run(tmp_path)
    monkeypatch.delitem(fedlab.registry.WORKLOADS, "blobs")
    fedlab.registry.forget()
    assert fedlab.resume(result.directory).weights_sha256 == result.weights_sha256


def test_a_run_of_an_older_version_goes_on(tmp_path):
    directory = run(tmp_path).directory
    path = directory / "manifest.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "options"}))
    assert len(fedlab.resume(directory).rounds) == 2
    assert len(fedlab.resume(directory, rounds=2).rounds) == 3
