"""Lines reported of a SuperNode, from its two logs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fedlab.deploy import client_log
from fedlab.deploy.client_log import SuperNodeMonitor


@pytest.fixture
def reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    monitor = SuperNodeMonitor("lab:9092", "usps", tmp_path / "clients" / "usps", lines.append)
    return SimpleNamespace(lines=lines, monitor=monitor)


def event(kind, **fields):
    return json.dumps({"time": 1.0, "event": kind, **fields})


def test_a_run_from_its_first_message_to_its_last(reported):
    reported.monitor.read_supernode_log(["\x1b[92mINFO \x1b[0m:      SuperNode ID: 17"])
    facts = {"rounds": 2, "name": "digits", "status": "ok"}
    reported.monitor.read_client_events([event("query", status="ok", name="digits")] * 2)
    for number in (1, 2):
        facts["last"] = number == 2
        reported.monitor.read_client_events([event("train", round=number, seconds=4.06, **facts)])
        assert not reported.monitor.finished
        reported.monitor.read_client_events(
            [event("saved", round=number, images=True, **facts), event("evaluate", round=number, seconds=1, **facts)]
        )
    assert (reported.monitor.connected, reported.monitor.node) == (True, 17)
    assert reported.monitor.finished
    assert reported.lines == [
        "connected to lab:9092 as usps",
        "taking part in digits",
        "round 1 of 2: trained, 4.1 s",
        "round 1 of 2: tested, 1.0 s",
        "round 2 of 2: trained, 4.1 s",
        "the model is in clients/usps; predict with: fedlab predict clients/usps IMAGES...",
        "round 2 of 2: tested, 1.0 s",
    ]


def test_who_has_no_use_for_images_is_not_told_to_predict_on_them(reported):
    reported.monitor.read_client_events([event("saved", round=2, rounds=9, last=True, images=False, status="ok")])
    assert reported.lines == ["the model is in clients/usps"]


def test_a_failure_is_told_by_its_last_line_and_does_not_finish_a_run(reported):
    reported.monitor.read_client_events(
        [event("evaluate", round=2, status="failed", reason="Traceback:\n  x\nOSError: disk\n")]
    )
    assert reported.lines == ["round 2: failed to evaluate: OSError: disk"]
    assert not reported.monitor.finished


def test_busy_while_a_second_message_comes_before_the_first_reply_is_logged(reported):
    reported.monitor.read_supernode_log(["Receiving: train message (ID: a)", "Receiving: evaluate message (ID: b)"])
    reported.monitor.read_supernode_log(["Sent successfully"])
    assert reported.monitor.busy
    reported.monitor.read_supernode_log(["Sent successfully", "Ignoring reply message"])
    assert not reported.monitor.busy


def test_busy_between_a_message_and_its_reply(reported):
    reported.monitor.read_supernode_log(
        ["INFO :      Receiving: train message (ID: 5)", "INFO :      Received successfully"]
    )
    assert reported.monitor.busy
    reported.monitor.read_supernode_log(["INFO :      Sent successfully"])
    assert not reported.monitor.busy


def test_a_server_that_goes_and_comes_back(reported, monkeypatch):
    reported.monitor.read_supernode_log(["WARNING :   Connection attempt failed, retrying in 0.90 seconds"])
    assert reported.lines == []  # perhaps only a hiccup
    monkeypatch.setattr(client_log, "NOTICE_AFTER", 0.0)
    reported.monitor.read_supernode_log(["WARNING :   Connection attempt failed, retrying in 1.90 seconds"])
    reported.monitor.read_supernode_log(["INFO :      Connection successful after 3.2 seconds and 3 tries."])
    assert reported.lines == ["the server at lab:9092 went away; trying until it is back", "the server is back"]
    assert reported.monitor.lost == 0.0


def test_a_server_that_goes_after_the_last_round_is_no_fault(reported, monkeypatch):
    monkeypatch.setattr(client_log, "NOTICE_AFTER", 0.0)
    reported.monitor.read_client_events(
        [
            event("query", status="ok", name="digits"),
            event("evaluate", status="ok", round=2, rounds=2, seconds=1.0, last=True),
        ]
    )
    reported.monitor.read_supernode_log(["WARNING :   Connection attempt failed, retrying in 1.90 seconds"])
    assert reported.lines[-1] == "digits is over; waiting at lab:9092 for the next one, until Ctrl-C"


def test_the_ends_of_a_supernode(reported):
    reported.monitor.read_supernode_log(["[code: 2004] Failed to activate SuperNode."])
    assert reported.monitor.rejected and not reported.monitor.bad_signature
    reported.monitor.read_supernode_log(["INFO :      SuperNode terminated gracefully."])
    assert reported.monitor.bad_signature
    reported.monitor.read_supernode_log(
        ["INFO :      SuperNode ID: 17", "INFO :      SuperNode terminated gracefully."]
    )
    assert reported.monitor.restarted and not reported.monitor.rejected


def test_a_refusal(reported):
    reported.monitor.read_supernode_log(["fedlab: refused: it claims another's partition"])
    assert reported.monitor.refused == "it claims another's partition"


def test_an_update_that_the_server_refused(reported):
    reported.monitor.read_client_events(
        [event("refused", round=3, reason="its array head/0.weight holds NaN or infinity")]
    )
    assert reported.lines == ["round 3: the server refused this update: its array head/0.weight holds NaN or infinity"]
    assert not reported.monitor.refused  # it may stay


def test_lines_that_are_no_events_are_passed_over(reported):
    reported.monitor.read_client_events(["nonsense", "[]", "{}", event("train", round=1, status="ok")])
    assert reported.lines == []


def test_a_warning_of_the_data_is_told_once(reported):
    warning = event("warning", text="10 of 350 molecules of mine.smi were set aside; all of them in set-aside/mine.tsv")
    reported.monitor.read_client_events([warning, warning])
    reported.monitor.read_client_events([warning, event("warning", text="another")])
    assert reported.lines == [
        "warning: 10 of 350 molecules of mine.smi were set aside; all of them in set-aside/mine.tsv",
        "warning: another",
    ]


def test_what_a_training_has_cost_of_the_owner_s_privacy(reported):
    done = {"round": 1, "status": "ok", "seconds": 1.0}
    reported.monitor.read_client_events([event("train", **done, epsilon=1.25, max_epsilon=8.0)])
    reported.monitor.read_client_events([event("train", **done, epsilon=1.25, max_epsilon=0.0)])
    said = "round 1: trained, 1.0 s; privacy spent in all runs: epsilon 1.25"
    assert reported.lines == [f"{said} of 8", said]


def test_the_data_of_a_client_is_told_once_a_run(reported):
    usps = {"name": "usps", "examples": 1500, "place": "the package", "missing": "put it there"}
    mine = {"name": "factory", "examples": 24, "place": "/scans", "missing": ""}
    for run, sources in (("a", [usps]), ("a", [usps]), ("b", [usps]), ("b", [mine])):
        reported.monitor.read_client_events([event("data", name=run, sources=sources)])
    part = "training data: usps 1,500 (a part of it, in the package)"
    assert reported.lines == [part, part, "training data: factory 24 (in /scans)"]
