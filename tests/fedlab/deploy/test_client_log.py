"""What is said of a SuperNode, from the lines of its two logs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fedlab.deploy import client_log
from fedlab.deploy.client_log import News, Tail


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    options = SimpleNamespace(address="lab:9092", client="usps", keep=tmp_path / "clients" / "usps")
    return SimpleNamespace(said=said, news=News(options, said.append))


def event(kind, **fields):
    return json.dumps({"time": 1.0, "event": kind, **fields})


def test_a_run_from_its_first_message_to_its_last(told):
    told.news.of_supernode(["INFO :      SuperNode ID: 17"])
    facts = {"rounds": 2, "name": "digits", "status": "ok"}
    told.news.of_client([event("query", status="ok", name="digits")] * 2)
    for number in (1, 2):
        told.news.of_client([event("train", round=number, seconds=4.06, **facts)])
        assert not told.news.finished
        told.news.of_client(
            [event("kept", round=number, images=True, **facts), event("evaluate", round=number, seconds=1, **facts)]
        )
    assert (told.news.connected, told.news.node) == (True, 17)
    assert told.news.finished
    assert told.said == [
        "connected to lab:9092 as usps",
        "taking part in digits",
        "round 1 of 2: trained, 4.1 s",
        "round 1 of 2: tested, 1.0 s",
        "round 2 of 2: trained, 4.1 s",
        "the model is in clients/usps; predict with: fedlab predict clients/usps IMAGES...",
        "round 2 of 2: tested, 1.0 s",
    ]


def test_who_has_no_use_for_images_is_not_told_to_predict_on_them(told):
    told.news.of_client([event("kept", round=2, rounds=2, images=False, status="ok")])
    assert told.said == ["the model is in clients/usps"]


def test_a_failure_is_told_by_its_last_line_and_does_not_finish_a_run(told):
    told.news.of_client([event("evaluate", round=2, status="failed", reason="Traceback:\n  x\nOSError: disk\n")])
    assert told.said == ["round 2: failed to evaluate: OSError: disk"]
    assert not told.news.finished


def test_busy_between_a_message_and_its_reply(told):
    told.news.of_supernode(["INFO :      Receiving: train message (ID: 5)", "INFO :      Received successfully"])
    assert told.news.busy
    told.news.of_supernode(["INFO :      Sent successfully"])
    assert not told.news.busy


def test_a_server_that_goes_and_comes_back(told, monkeypatch):
    told.news.of_supernode(["WARNING :   Connection attempt failed, retrying in 0.90 seconds"])
    assert told.said == []  # perhaps only a hiccup
    monkeypatch.setattr(client_log, "HICCUP", 0.0)
    told.news.of_supernode(["WARNING :   Connection attempt failed, retrying in 1.90 seconds"])
    told.news.of_supernode(["INFO :      Connection successful after 3.2 seconds and 3 tries."])
    assert told.said == ["the server at lab:9092 went away; trying until it is back", "the server is back"]
    assert told.news.lost == 0.0


def test_the_ends_of_a_supernode(told):
    told.news.of_supernode(["[code: 2004] Failed to activate SuperNode."])
    assert told.news.turned_away and not told.news.unproven
    told.news.of_supernode(["INFO :      SuperNode terminated gracefully."])
    assert told.news.unproven
    told.news.of_supernode(["INFO :      SuperNode ID: 17", "INFO :      SuperNode terminated gracefully."])
    assert told.news.restarted and not told.news.turned_away


def test_a_refusal(told):
    told.news.of_supernode(["fedlab: refused: it claims another's partition"])
    assert told.news.refused == "it claims another's partition"


def test_an_update_that_the_server_refused(told):
    told.news.of_client([event("refused", round=3, reason="its array head/0.weight holds NaN or infinity")])
    assert told.said == ["round 3: the server refused this update: its array head/0.weight holds NaN or infinity"]
    assert not told.news.refused  # it may stay


def test_lines_that_are_no_events_are_passed_over(told):
    told.news.of_client(["nonsense", "[]", "{}", event("train", round=1, status="ok")])
    assert told.said == []


def test_a_tail_gives_each_complete_line_once(tmp_path):
    path = tmp_path / "log"
    assert Tail(path).lines() == []
    path.write_text("old\n")
    tail = Tail(path, from_end=True)
    with path.open("a") as stream:
        stream.write("\x1b[92mone\x1b[0m\ntw")
        stream.flush()
        assert tail.lines() == ["one"]
        stream.write("o\n")
    assert tail.lines() == ["two"]
    assert tail.lines() == []
