"""Trackers by name, and a run that goes on when one of them fails."""

from __future__ import annotations

import json
import sys

import pytest

import fedlab
import toy
from fedlab.errors import ConfigError, RunError
from fedlab.runs.directory import RunDirectory
from fedlab.trackers.opening import TRACKERS, TrackerRow, tracker_names
from tables import put

SEEN: list[tuple] = []


class Recorder:
    """Remembers what it is told, and cannot take round 2."""

    def __init__(self, run):
        SEEN.append((run.project, run.group, run.options["rounds"], run.after))

    def add(self, server_round, scalars):
        if server_round == 2:
            raise ConnectionError("the service is gone\nmore")
        SEEN.append((server_round, scalars["mean/accuracy"]))

    def close(self, failed):
        SEEN.append(("closed", failed))


class Exiting(Recorder):
    """Calls sys.exit in round 1."""

    def add(self, server_round, scalars):
        if server_round == 1:
            sys.exit("no quota")


class Closed:
    """Cannot be opened."""

    def __init__(self, run):
        raise PermissionError("no key")


@pytest.fixture(autouse=True)
def _trackers(monkeypatch):
    SEEN.clear()
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    for name, package in (
        ("recorder", "json"),
        ("exiting", "json"),
        ("closed", "json"),
        ("missing", "no_such_package"),
    ):
        row = TrackerRow(f"{__name__}:{name.title()}", package, "RECORDER_", "open it")
        monkeypatch.setitem(TRACKERS, name, row)


def run(tmp_path, **changes):
    return fedlab.run(toy.write_preset(tmp_path, **changes), runs=tmp_path / "runs")


def test_names_are_split_and_checked():
    assert tracker_names("") == []
    assert tracker_names("recorder, closed,recorder") == ["recorder", "closed"]
    with pytest.raises(ConfigError, match="no tracker 'wanb'; did you mean 'wandb'"):
        tracker_names("wanb")
    with pytest.raises(ConfigError, match=r"'missing' needs no_such_package.*`pip install 'fedlab-adapt\[missing\]'`"):
        tracker_names("missing")


def test_one_that_fails_is_left_out_with_a_note_and_changes_no_bit(tmp_path):
    plain = run(tmp_path, strategy="oracle", **{"blobs.client_labels": True})
    result = run(tmp_path, track="recorder", track_project="p", strategy="oracle", **{"blobs.client_labels": True})
    assert result.weights_sha256 == plain.weights_sha256
    means = [record["mean"]["accuracy"] for record in result.rounds]
    assert [("p", "", 3, -1), (0, means[0]), (1, means[1]), ("closed", True)] == SEEN
    events = map(json.loads, (result.directory / "events.jsonl").read_text().splitlines())
    (note,) = [event["note"] for event in events if event["event"] == "note"]
    assert note == "recorder is left out from here on, and the run goes on: the service is gone"


def test_one_that_calls_sys_exit_is_left_out_like_any_other(tmp_path):
    result = run(tmp_path, track="exiting", strategy="oracle", **{"blobs.client_labels": True})
    assert SEEN[-1] == ("closed", True)
    events = (result.directory / "events.jsonl").read_text()
    assert "exiting is left out from here on, and the run goes on: sys.exit('no quota') was called" in events


def test_the_end_of_a_run_is_told_and_a_resumed_run_says_where_it_begins(tmp_path):
    with pytest.raises(RunError):
        run(tmp_path, track="recorder", rounds=1, **{"blobs.broken": 0})
    assert SEEN[-1] == ("closed", True)
    SEEN.clear()
    done = run(tmp_path, track="recorder", rounds=1, name="done", strategy="source_only", **{"dualadapt.components": 2})
    assert SEEN[-1] == ("closed", False)
    fedlab.resume(done.directory, rounds=4)
    assert ("fedlab", "", 4, 1) in SEEN


def test_one_that_cannot_be_opened_ends_the_run_with_a_sentence(tmp_path):
    with pytest.raises(RunError, match=r"closed could not begin \(no key\); open it, or leave it out"):
        run(tmp_path, track="recorder,closed")
    assert SEEN[-1] == ("closed", True)
    assert RunDirectory.open(tmp_path / "runs" / "toy-0").manifest()["status"] == "failed"
