"""A phase ends when it says, whatever the network does to a reply: one client behind a slow link, then a silent one.

- Round 1: what ``usps`` gets passes at a few kilobytes a second. The server is killed while the client reads its
  message, and resumed; the client connects again, and reads as slowly.
- Round 2: from its work on, what it sends passes at 400 bytes a second: its reply is announced and never ends.
- Round 3: nothing of it passes any more.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cables import Relay
from commands import TINY, Command, end, laptop, left_running
from fedlab.deploy import provision
from fedlab.engines import processes
from fedlab.files import read_lines
from fedlab.runs.result import Result

SLOW = 4000  # bytes a second: a client reconnects in seconds, and a message takes minutes
DEADLINE = 15  # seconds in which the client that works answers on a busy machine, too
OPTIONS = {
    **TINY,
    "rounds": 3,
    "min_clients": 1,
    "server.steps": 20,  # a moment in which the link of a client is slowed down
    "comm.round_timeout": DEADLINE,
    "dualadapt.onboarding": 0,  # who missed round 1 trains in round 2 like any other
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All rounds, behind a relay that is slowed down."""
    root = tmp_path_factory.mktemp("deadlines")
    provision.create_credentials(root / "server" / "certs", clients=["usps", "optdigits"])
    address = f"127.0.0.1:{processes.free_ports(1)[0]}"
    up, down = root / "up", root / "down"
    up.write_text("")
    down.write_text("")
    line, folder = Relay(up, down), root / "server" / "runs" / "dualadapt-digits-0"

    def told(**wanted):
        events = read_lines(folder / "events.jsonl") if (folder / "events.jsonl").exists() else []
        return [event for event in events if all(event.get(key) == value for key, value in wanted.items())]

    options = [f"{name}={value}" for name, value in OPTIONS.items()]
    serve = Command(root / "server", "serve", "dualadapt-digits", *options, "--address", address, "--wait", "300")
    commands = [serve]
    try:
        for name, where in (("usps", line.server(address)), ("optdigits", address)):
            machine = laptop(root / name, root / "server" / "certs", name)
            commands.append(Command(machine, "join", where, "--domain", name, "--once", "--give-up-after", "60"))
        log = root / "usps" / "clients" / "usps" / "flower.log"

        def asked():
            """What usps logged of each message to train."""
            return log.read_text().split("Receiving: train")[1:]

        serve.wait_for(lambda: told(event="client", client="usps", round=0), "the test of the first model")
        down.write_text(str(SLOW))
        commands[1].wait_for(asked, "usps to read a message")
        serve.process.kill()
        serve.code()
        assert "Received successfully" not in log.read_text().rpartition("Receiving: train")[2]
        resumed = Command(root / "server", "resume", str(folder), "--wait", "120")
        commands.append(resumed)
        resumed.wait_for(lambda: told(event="phase", phase="evaluate", round=1), "the end of round 1")
        before = len(asked())
        down.write_text("")
        resumed.wait_for(lambda: told(event="phase", phase="clients", round=2), "round 2")
        commands[1].wait_for(lambda: len(asked()) > before and "Received successfully" in asked()[-1], "usps to train")
        up.write_text("400")
        resumed.wait_for(lambda: told(event="phase", phase="adapt", round=3), "round 3")
        up.write_text("0")
        code = resumed.code()
        up.write_text("")
        yield SimpleNamespace(serve=serve, resumed=resumed, code=code, told=told, rounds=Result.read(folder).rounds)
    finally:
        end(commands)
        line.remove()
    assert left_running(root) == []


@pytest.mark.engine
def test_a_slow_and_a_silent_link_end_with_the_deadline_and_the_others_are_used(run):
    assert run.code == 0, run.resumed.said
    for record in run.rounds[2:]:
        assert [(one["client"], one["kind"]) for one in record["failures"]] == [("usps", "late")], record
        assert record["failures"][0]["reason"] == f"no reply within {DEADLINE} s"
        assert record["bytes"]["optdigits"]["train_up"] > 0
        assert DEADLINE - 1 < record["seconds"]["clients"] < DEADLINE + 10


@pytest.mark.engine
def test_a_client_in_the_middle_of_its_message_is_late_for_a_server_that_was_resumed(run):
    assert [event["round"] for event in run.told(event="resumed")] == [0]
    record = run.rounds[1]
    assert [(one["client"], one["kind"]) for one in record["failures"]] == [("usps", "late")], record
    assert record["bytes"]["optdigits"]["train_up"] > 0
    assert DEADLINE - 1 < record["seconds"]["clients"] < DEADLINE + 10


@pytest.mark.engine
def test_the_server_says_whom_it_waits_for(run):
    waiting = [event for event in run.told(event="waiting") if event["clients"] == ["usps"]]
    assert {event["round"] for event in waiting} >= {1, 2, 3}
    assert all(0 <= event["seconds_left"] < DEADLINE for event in waiting), waiting
    assert "waiting for usps; the phase ends in " in run.resumed.said
