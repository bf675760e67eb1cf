"""What a display is told about a round."""

from __future__ import annotations

import json

from fedlab.comm.replies import ClientFailure
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.server import run_events
from fedlab.server.run_events import RunEvents


def test_events_have_the_round_at_that_moment_and_clients_by_name_and_progress_is_not_told_too_often(
    tmp_path, monkeypatch
):
    config = load_config({"digits.targets": "usps,optdigits", "rounds": 4})
    monkeypatch.setattr(run_events, "PROGRESS_SECONDS", 1e9)
    rounds = [2]
    events = RunEvents(RunDirectory(tmp_path), config, lambda: rounds[0])
    events.waiting({1, 0}, 3.14)
    rounds[0] = 3
    events.failures("clients", [ClientFailure(1, "no reply within 5 s", "late")])
    for done in range(1, 5):
        events.progress("server", done, 4)
    events.phase("evaluate", clients=2)
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    found = [(one["event"], one["round"]) for one in told]
    assert found == [("waiting", 2), ("client_failed", 3), ("progress", 3), ("phase", 3)]
    assert told[0]["clients"] == ["usps", "optdigits"] and told[0]["seconds_left"] == 3.1
    assert (told[1]["client"], told[1]["kind"], told[2]["done"]) == ("optdigits", "late", 4)
    assert told[3] == {**told[3], "rounds": 4, "phase": "evaluate", "clients": 2}


def test_the_steps_of_a_client_have_its_name_and_are_not_told_too_often(tmp_path, monkeypatch):
    events = RunEvents(RunDirectory(tmp_path), load_config({"digits.targets": "usps,optdigits"}), lambda: 2)
    events.client_progress(1, "adaptation", 1, 3)
    monkeypatch.setattr(run_events, "CLIENT_SECONDS", 1e9)
    events.client_progress(1, "adaptation", 2, 3)
    events.client_progress(1, "adaptation", 3, 3)  # the reply says the same
    (told,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (told["client"], told["done"], told["total"]) == ("optdigits", 1, 3)
