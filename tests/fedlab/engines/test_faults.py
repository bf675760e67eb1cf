"""What goes wrong between real processes: a client dies, one is slow, the server dies, the network is cut.

One federation goes through all of it. Three clients, of which one would do; ``factory`` brings its own images.

- Round 1: the machine of ``optdigits`` loses power and ``usps`` is stopped, both while they train.
- Then ``optdigits`` is started again and ``usps`` goes on.
- Round 2: the server is killed while its clients train, and resumed.
- Round 2 again: the network of ``usps`` is cut while it trains, and mended.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from cables import cable
from commands import TINY, Command, end, laptop, left_running
from fedlab.data.digits import datasets
from fedlab.deploy import provision
from fedlab.engines import processes
from fedlab.files import read_lines
from fedlab.runs.result import Result

OPTIONS = {
    **TINY,
    "rounds": 2,
    "digits.targets": "usps,optdigits,@factory",
    "min_clients": 1,
    "client.steps": 1000,  # a second or two, so that who is to be stopped at its work has not answered before
    "dualadapt.onboarding": 0,  # who missed round 1 trains in round 2 like any other
}
IMPORTS = "import torch, flwr.clientapp"  # takes longer than a message, where apps are forked
SILENT = 45  # seconds; an app that says nothing for 60 Flower takes for dead, which is another failure than late
CLIENTS = ("usps", "optdigits", "factory")


def deadline():
    """Seconds in which whoever works answers, as busy as this machine is: what a dead client costs the round."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return round(min(SILENT, 15 + 4 * (time.monotonic() - began)))


def scans(folder):
    """A folder as its owner may have it: gray, colored and see-through images of any size, in any sub-folder."""
    images = datasets.load_digits("mnist", "test", None).columns["x"].permute(0, 2, 3, 1).numpy()  # (count, 32, 32, 3)
    kinds = itertools.cycle([("png", "L"), ("jpg", "RGB"), ("png", "RGBA"), ("jpeg", "L"), ("jpg", "CMYK")])
    for number, (image, (suffix, mode)) in enumerate(zip(images[:24], kinds, strict=False)):
        path = folder / f"day {number % 3}" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(mode).resize((20 + 7 * number, 45 + number)).save(path)
    return folder


class Play:
    """The federation while it runs."""

    def __init__(self, root, line):
        self.root, self.line, self.commands = root, line, []
        provision.create_credentials(root / "server" / "certs", hosts=[line.here], clients=CLIENTS)
        self.address = f"{line.here}:{processes.free_ports(1)[0]}"
        self.deadline = deadline()
        self.run = root / "server" / "runs" / "dualadapt-digits-0"

    def start(self, folder, *arguments, before=()):
        self.commands.append(Command(self.root / folder, *arguments, before=before))
        return self.commands[-1]

    def join(self, name, *arguments, address=None, before=()):
        if not (self.root / name).exists():
            laptop(self.root / name, self.root / "server" / "certs", name)
        more = ("--domain", name, "--once", "--give-up-after", "150", *arguments)
        return self.start(name, "join", address or self.address, *more, before=before)

    def told(self, **wanted):
        """Events of the run so far with certain fields."""
        events = read_lines(self.run / "events.jsonl")
        return [event for event in events if all(event.get(key) == value for key, value in wanted.items())]

    def flower(self, name):
        log = self.root / name / "clients" / name / "flower.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def training(self, name, times):
        """What a client's log says after it was asked to train for the ``times``-th time."""
        return "".join(self.flower(name).split("Receiving: train")[times:])

    def at_work(self, name, command, times):
        """Wait until a client has what it needs to train for the ``times``-th time."""
        command.wait_for(lambda: "Received successfully" in self.training(name, times), f"{name} to train")


@pytest.fixture(scope="module")
def play(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    with cable() as line:
        play = Play(root, line)
        try:
            yield performed(play)
        finally:
            end(play.commands)


def performed(play):
    """All that happens, in its order."""
    line, options = (
        play.line,
        [f"{name}={value}" for name, value in {**OPTIONS, "comm.round_timeout": play.deadline}.items()],
    )
    serve = play.start("server", "serve", "dualadapt-digits", *options, "--address", play.address, "--wait", "180")
    usps = play.join("usps", address=line.server(play.address), before=line.before)
    optdigits = play.join("optdigits")
    factory = play.join("factory", "--data", str(scans(play.root / "scans")))

    play.at_work("usps", usps, 1)
    stopped = usps.freeze()
    play.at_work("optdigits", optdigits, 1)
    optdigits.cut_down()
    serve.wait_for(lambda: play.told(event="client_failed", client="optdigits"), "the deadline")
    usps.thaw(stopped)
    again = play.join("optdigits")

    serve.wait_for(lambda: play.told(event="phase", phase="adapt", round=2), "round 2")
    serve.process.kill()
    serve.code()
    # From here on nobody is to be late: on a busy machine work takes as long as it takes.
    resumed = play.start("server", "resume", str(play.run), "comm.round_timeout=600", "--quiet")
    resumed.wait_for(lambda: len(play.told(event="connecting")) == 2, "the server")
    before = play.flower("usps").count("Receiving: train")
    play.at_work("usps", usps, before + 1)
    line.cut()
    usps.wait_for(lambda: "Sending: train" in play.training("usps", before + 1), "its reply")
    line.mend()

    codes = {command: command.code() for command in (resumed, usps, again, factory)}
    return SimpleNamespace(
        root=play.root,
        run=play.run,
        told=play.told,
        deadline=play.deadline,
        resumed=resumed,
        clients={"usps": usps, "optdigits": again, "factory": factory},
        codes=codes,
        rounds=Result.read(play.run).rounds,
    )


def took_part(record, phase="train"):
    """The clients from which something came in a round."""
    return {client for client, count in record["bytes"].items() if count[f"{phase}_up"] > 0}


pytestmark = pytest.mark.engine


def test_the_run_and_every_client_end_well(play):
    for command, code in play.codes.items():
        assert code == 0, command.said
    assert [record["round"] for record in play.rounds] == [0, 1, 2]


def test_a_round_ends_at_its_deadline_without_who_is_dead_or_slow(play):
    first = play.rounds[1]
    assert [(failure["client"], failure["phase"]) for failure in first["failures"]] == [
        ("usps", "clients"),
        ("optdigits", "clients"),
    ]
    slow, dead = first["failures"]
    assert (slow["kind"], slow["reason"]) == ("late", f"no reply within {play.deadline} s")
    assert dead["kind"] in ("late", "gone")  # with a long deadline Flower misses the dead one's heartbeats before
    assert took_part(first) == took_part(first, "evaluate") == {"factory"}
    assert all(first["bytes"][client]["train_down"] > 0 for client in CLIENTS)
    assert all(first["bytes"][client]["evaluate_down"] == 0 for client in ("usps", "optdigits"))


def test_whoever_is_back_is_used_again_by_a_server_that_was_killed_too(play):
    assert [event["round"] for event in play.told(event="resumed")] == [1]
    last = play.rounds[2]
    assert took_part(last) == took_part(last, "evaluate") == set(CLIENTS)
    assert (last["failures"], last["absent"]) == ([], [])
    assert play.told(event="round", round=1)[0]["without"] == ["optdigits", "usps"]
    assert play.told(event="round", round=2)[0]["without"] == []
    for name, command in play.clients.items():
        assert "round 2 of 2: tested" in command.said
        assert f"the model is in clients/{name}" in command.said


def test_a_client_s_own_images_are_trained_on_and_predicted(play):
    assert play.rounds[2]["clients"]["factory"] == {"num-examples": 24.0}  # no labels, no accuracy
    predict = Command(play.root / "factory", "predict", "clients/factory", str(play.root / "scans"), "--json")
    assert predict.code() == 0, predict.said
    rows = [json.loads(line) for line in predict.said.splitlines()]
    assert len(rows) == 24
    assert all(row["class"] in range(10) and 0.1 <= row["probability"] <= 1 for row in rows)


def test_nothing_is_left_running(play):
    assert left_running(play.root) == []
