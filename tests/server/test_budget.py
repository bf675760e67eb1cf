"""A run ends with the round in which training reaches its budget, killed and resumed or not."""

from __future__ import annotations

import pytest

import fedlab
import toy
from fedlab.errors import ConfigError
from fedlab.runs.directory import RunDirectory
from fedlab.server.app import RoundLoop
from fedlab.server.budget import Budget
from tables import put


def test_bytes_and_seconds_are_those_of_training():
    budget = Budget(bytes=100, seconds=0, left_out=frozenset({"evaluate", "score"}))
    budget.add(60, {"server": 1.0, "evaluate": 50.0})
    assert budget.ended_by == ""
    moved, seconds = {"train_down": 30, "train_up": 10, "evaluate_down": 900}, {"clients": 2.0, "score": 70.0}
    record = {"bytes": {"a": moved}, "seconds": seconds}
    budget.restore([record])
    assert (budget.spent_bytes, budget.spent_seconds, budget.ended_by) == (100, 3.0, "bytes")
    assert budget.message(4) == "the run ends with round 4: 100 B of training reach the budget of 100 B"


def test_no_limit_and_a_limit_of_seconds():
    free, timed = Budget(0, 0), Budget(0, 2.5, frozenset({"evaluate", "score"}))
    for budget in (free, timed):
        budget.add(10**12, {"pretrain": 2.0, "server": 1.0})
    assert (free.ended_by, timed.ended_by) == ("", "seconds")
    assert timed.message(1) == "the run ends with round 1: 3.0 s of training reach the budget of 2.5 s"


@pytest.fixture
def run(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    preset = toy.write_preset(tmp_path, rounds=6)
    return lambda name, **options: fedlab.run(preset, runs=tmp_path, name=name, **options)


def round_bytes(result, number):
    return sum(sent["train_down"] + sent["train_up"] for sent in result.rounds[number]["bytes"].values())


@pytest.mark.engine
def test_a_run_ends_with_the_first_round_that_reaches_its_bytes_and_is_tested_as_a_last_one(run, tmp_path, monkeypatch):
    whole = run("whole", rounds=2)
    limit = round_bytes(whole, 1) + 1
    result = run("limited", budget_bytes=limit)
    assert [record["round"] for record in result.rounds] == [0, 1, 2]
    assert result.manifest["ended_by"] == "bytes"
    assert (whole.manifest["ended_by"], whole.weights_sha256) == ("rounds", result.weights_sha256)
    assert result.rounds[2]["clients"] == whole.rounds[2]["clients"]  # what DualAdapt reports after a last round, too
    (note,) = [line["note"] for line in _events(result.directory) if line["event"] == "note"]
    assert note.startswith("the run ends with round 2: ")

    log_round = RunDirectory.log_round

    def stop(self, record):
        log_round(self, record)
        if record["round"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "log_round", stop)
    with pytest.raises(KeyboardInterrupt):
        run("killed", budget_bytes=limit)
    monkeypatch.setattr(RunDirectory, "log_round", log_round)
    resumed = fedlab.resume(tmp_path / "killed-0")
    assert (len(resumed.rounds), resumed.weights_sha256) == (3, result.weights_sha256)


def test_pre_training_alone_may_spend_all_seconds(run):
    result = run("short", budget_seconds=1e-9)
    assert [record["round"] for record in result.rounds] == [0]
    assert result.manifest["ended_by"] == "seconds"


PRIVATE = {"strategy": "dp_fixed", "blobs.client_labels": True, "dp_fixed.noise_multiplier": 2.0}


def test_a_run_ends_before_the_round_that_would_exceed_its_privacy_budget(run):
    result = run("private", **PRIVATE, **{"dp.max_epsilon": 3.5, "report": True})
    spent = [record["privacy"]["epsilon"] for record in result.rounds]
    assert spent == sorted(spent) and 0 == spent[0] < spent[-1] <= 3.5 and len(spent) < 7
    assert result.manifest["ended_by"] == "epsilon"
    assert result.rounds[-1]["privacy"]["noise"] == "seeded"
    first, note = [line["note"] for line in _events(result.directory) if line["event"] == "note"]
    assert "it protects nobody" in first
    assert "it protects nobody" in (result.directory / "report.html").read_text()
    assert "one more release would bring epsilon to" in note
    assert run("plain").rounds[-1]["privacy"] is None


def test_every_resume_with_secret_noise_counts_a_release_that_may_have_been_lost(run, tmp_path, monkeypatch):
    save = RoundLoop._save_checkpoint

    def stop(self, arrays):
        if self.round == 3:
            raise KeyboardInterrupt
        save(self, arrays)

    monkeypatch.setattr(RoundLoop, "_save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        run("killed", **PRIVATE, **{"dp.noise": "secret"})
    with pytest.raises(KeyboardInterrupt):
        fedlab.resume(tmp_path / "killed-0")
    monkeypatch.setattr(RoundLoop, "_save_checkpoint", save)
    resumed = fedlab.resume(tmp_path / "killed-0")
    assert len(resumed.rounds) == 7
    assert resumed.rounds[-1]["privacy"]["releases"] == 6 + 2


def test_a_budget_without_noise_is_refused(run):
    with pytest.raises(ConfigError, match=r"dp.max_epsilon.*adds no noise"):
        run("hopeless", strategy="dualadapt", **{"dp.max_epsilon": 3.5})


def _events(path):
    from fedlab.files import read_lines

    return read_lines(path / "events.jsonl")
