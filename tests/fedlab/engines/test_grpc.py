"""A federation of real processes over TLS: same bits, a run that lost a client and is resumed, and who is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fedlab
from commands import TINY, Command, end, laptop, left_running
from fedlab.comm import credentials
from fedlab.comm.event_rate import BURST
from fedlab.config.engine_options import GrpcConfig
from fedlab.deploy import provision
from fedlab.engines import grpc, processes, superlink
from fedlab.errors import ConfigError, RunError
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from strangers import put_all
from waiting import wait_until

# Clients also train a G of their own after the last round, which stays with them.
OPTIONS = {
    **TINY,
    "dualadapt.client_adapt": "source_free",
    "source_free.steps": 2,
    "source_free.batch_size": 8,
    "source_free.guard": False,
}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """Two honest clients and three others; one SuperNode is killed in round 1, and the run resumed with the clients up.

    All clients are needed and no phase is repeated, so the run stops with a sentence; `join` starts another SuperNode.
    The server and a client work in folders with a user's own files of common names, which they must not import.
    """
    root = tmp_path_factory.mktemp("federation")
    put_all(root / "server")
    put_all(root / "optdigits")
    mine, foreign = root / "server" / "certs", root / "foreign"
    provision.create_credentials(mine, clients=["optdigits", "usps", "thief"])
    provision.create_credentials(foreign, clients=["usps"])
    address = f"127.0.0.1:{processes.free_ports(1)[0]}"
    options = [f"{name}={value}" for name, value in {**OPTIONS, "comm.attempts": 1}.items()]
    serve = Command(
        root / "server", "serve", "dualadapt-digits", *options, "--address", address, "--wait", "300", "--json"
    )
    started = [serve]

    def join(folder: Path, *arguments: str) -> Command:
        started.append(Command(folder, "join", address, "--domain", "usps", "--give-up-after", "100", *arguments))
        return started[-1]

    try:
        usps = join(laptop(root / "usps", mine, "usps"), "--once", "--device", "cpu")
        refused = {
            "stolen": join(laptop(root / "c", mine, "usps", key=mine / "clients" / "thief.key")),
            "unregistered": join(laptop(root / "a", mine, "usps", key=foreign / "clients" / "usps.key")),
            "wrong authority": join(laptop(root / "b", foreign, "usps")),
        }
        judged = {name: command.code() for name, command in refused.items()}  # while the server waits for the last
        optdigits = join(laptop(root / "optdigits", mine, "optdigits"), "--domain", "optdigits", "--once")
        usps.wait_for(lambda: "Receiving: train" in (root / "usps/clients/usps/flower.log").read_text(), "training")
        os.kill(usps.supernode(), signal.SIGKILL)
        stopped = serve.code()
        run = root / "server" / "runs" / "dualadapt-digits-0"
        nodes, log = json.loads((run / grpc.NODES).read_text()), (run / "flower" / "flower.log").read_text()
        resumed = Command(root / "server", "resume", str(run), "--quiet")
        started.append(resumed)
        resumed_code = resumed.code()
        yield SimpleNamespace(
            serve=serve,
            stopped=stopped,
            resumed=resumed,
            resumed_code=resumed_code,
            run=run,
            nodes=nodes,
            log=log,
            clients={"usps": (usps, usps.code(30)), "optdigits": (optdigits, optdigits.code(30))},
            refused={name: (command.said, judged[name]) for name, command in refused.items()},
            root=root,
        )
    finally:
        end(started)


@pytest.mark.engine
def test_over_the_network_and_in_process_give_the_same_bits(federation, tmp_path):
    assert (federation.stopped, federation.resumed_code) == (1, 0), federation.resumed.said
    expected, found = fedlab.run("dualadapt-digits", runs=tmp_path, overrides=OPTIONS), Result.read(federation.run)
    assert found.weights_sha256 == expected.weights_sha256
    assert found.final() == expected.final()
    assert [record["bytes"] for record in found.rounds] == [record["bytes"] for record in expected.rounds]


@pytest.mark.engine
def test_a_client_predicts_with_the_features_that_it_trained_itself(federation):
    sent = RunDirectory.open(federation.run).checkpoints.latest()[1]["arrays"]
    for name in ("usps", "optdigits"):
        own = torch.load(federation.root / name / "clients" / name / "model.pt", weights_only=True)["states"]
        assert set(own) == {"arrays", "head"}
        assert not torch.equal(own["arrays"]["features.0.weight"], sent["features.0.weight"])
        assert torch.equal(own["arrays"]["head.0.weight"], sent["head.0.weight"])


@pytest.mark.engine
def test_clients_reconnect_tell_their_owners_and_leave(federation):
    for name, (command, code) in federation.clients.items():
        assert code == 0, command.said
        assert "round 0 of 1: tested" in command.said
        assert "round 1 of 1: trained" in command.said
        assert f"the model is in clients/{name}" in command.said
        assert f"{name} has left" in command.said
    assert "the SuperNode ended unexpectedly; starting another" in federation.clients["usps"][0].said
    assert "the server was started anew; connecting again" in federation.clients["optdigits"][0].said
    assert set(federation.nodes.values()) == {"optdigits", "usps", "thief"}


@pytest.mark.engine
def test_a_run_that_has_lost_a_client_it_needs_says_so_at_once_and_how_to_go_on(federation):
    said = " ".join(federation.serve.said.split())
    assert (
        "1 of 2 clients failed: partition 1 (usps); the run needs 2 valid replies (option min_clients); `fedlab resume`"
        in said
    )
    assert "Traceback" not in said and "First error" not in said  # it is a sentence of ours
    events = [json.loads(line) for line in (federation.run / "events.jsonl").read_text().splitlines()]
    lost = [event for event in events if event["event"] == "client_failed"]
    assert [(event["client"], event["round"], event["kind"]) for event in lost] == [("usps", 1, "gone")]
    assert [e["event"] for e in events if e["event"] in ("failed", "resumed", "finished")] == [
        "failed",
        "resumed",
        "finished",
    ]
    (node,) = [node for node, name in federation.nodes.items() if name == "usps"]
    assert f"[Fleet.DeactivateNode] Deactivated node_id={node}" in federation.log  # in the dead one's stead


@pytest.mark.engine
@pytest.mark.parametrize(
    ("who", "on_the_client", "on_the_server"),
    [
        ("unregistered", r"does not let 'usps' in: its key (SHA256:", "its key is not registered here"),
        ("wrong authority", "is not the one that", "it does not trust this server's certificate"),
        ("stolen", "this client was refused: it claims", "but its key is registered for 'thief'"),
    ],
)
def test_who_is_refused_is_told_why_on_both_sides(federation, who, on_the_client, on_the_server):
    said, code = federation.refused[who]
    assert code == 1
    assert on_the_client in " ".join(said.split())
    events = [json.loads(line) for line in (federation.run / "events.jsonl").read_text().splitlines()]
    assert [event for event in events if event["event"] == "refused" and on_the_server in event["reason"]], events


@pytest.mark.engine
def test_nothing_is_left_running(federation):
    assert left_running(federation.root) == []


@pytest.mark.engine
def test_an_expired_certificate_is_refused_on_both_sides(tmp_path):
    provision.create_credentials(tmp_path / "certs", clients=["usps"], days=-1)
    with pytest.raises(ConfigError, match=r"server.crt expired on .*; make a new one: fedlab certs"):
        grpc.check(GrpcConfig(certificates=str(tmp_path / "certs")))
    fleet = superlink.Fleet(f"127.0.0.1:{processes.free_ports(1)[0]}", tmp_path / "certs")
    told = []
    with (
        superlink.superlink(tmp_path / "link", fleet=fleet, environment=grpc.TRACE) as link,
        grpc.monitor_rejections(link.log, {}, lambda who, why: told.append(why)),
    ):
        client = Command(tmp_path, "join", link.fleet, "--domain", "usps")
        assert client.code() == 1
        wait_until(lambda: told, "the rejection", 10)
    assert "has expired; its owner makes a new one with" in " ".join(client.said.split())
    assert "which has expired by its clock" in told[0]


@pytest.mark.engine
def test_an_address_that_is_taken_is_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fleet = superlink.Fleet(f"127.0.0.1:{taken.getsockname()[1]}", None)
        with (
            pytest.raises(RunError, match=r"No server can listen at 127.0.0.1:\d+: the port is in use"),
            superlink.superlink(tmp_path, fleet=fleet),
        ):
            pass


@pytest.mark.parametrize("address", ["9092", "host:", ":9092", "host:port", "host:70000", "::1:9092", "::"])
def test_an_address_without_host_or_port_is_refused(address):
    with pytest.raises(ConfigError, match="is no HOST:PORT"):
        grpc.check(GrpcConfig(address=address, insecure=True))


def test_rejections_are_read_from_the_log(tmp_path):
    provision.create_credentials(tmp_path, clients=["usps"])
    key = credentials.public_keys(tmp_path)["usps"]
    door = "[/flwr.proto.Fleet/%s][ApiError:2004] Attempted to register SuperNode with public key: %r, exception: %s\n"
    shake = "I1124 00:28:49.867702 3626 handshaker.cc:155] CallNextHandshakerLocked: error=%s\n=== Source: ===\n x.cc\n"
    shake += " shutdown=false index=2, args={grpc.internal.endpoint_peer_address=ipv4:10.0.0.9:34552, a=0x5}\n"
    log = "".join(
        [
            "\x1b[92mINFO \x1b[0m:      Starting\n",
            shake % "OK",
            door % ("ActivateNode", key, "No SuperNode found with the given public key."),
            door % ("ActivateNode", key, "SuperNode with node ID 7 could not be activated."),
            door % ("RegisterNode", b"nonsense", "disabled"),
            shake % "UNKNOWN: Ssl handshake failed: TLSV1_ALERT_UNKNOWN_CA: OK",
            shake % "UNKNOWN: Ssl handshake failed: TLSV1_ALERT_UNKNOWN_CA: OK",
            shake % "UNKNOWN: something new",
        ]
    )
    lines = log.splitlines()
    for step in (len(lines), 2, 1):  # however many lines are read at once
        reported: list[tuple[str, str]] = []
        monitor = grpc.RejectionMonitor({"usps": key}, lambda *rejection, reported=reported: reported.append(rejection))
        for begin in range(0, len(lines), step):
            monitor.read(lines[begin : begin + step])
        assert [client for client, _ in reported] == ["usps", "usps", "a key of another kind", "10.0.0.9", "10.0.0.9"]
        signs = ["not registered here", "connected already", "without a key", "does not trust", "something new"]
        assert all(sign in why for sign, (_, why) in zip(signs, reported, strict=True))


def test_made_up_keys_cause_few_events_and_keep_no_client_s_own_from_the_log(tmp_path):
    provision.create_credentials(tmp_path, clients=["usps"])
    key = credentials.public_keys(tmp_path)["usps"]
    door = "[/flwr.proto.Fleet/ActivateNode][ApiError:2004] Attempted to register SuperNode with public key: %r, why"
    reported: list[tuple[str, str]] = []
    monitor = grpc.RejectionMonitor({"usps": key}, lambda *rejection: reported.append(rejection))
    shake = "I1124 00:28:49.867702 3626 handshaker.cc:155] CallNextHandshakerLocked: error=UNKNOWN: x %s\n y\n"
    shake += " shutdown=false index=2, args={grpc.internal.endpoint_peer_address=ipv4:10.0.%s.9:34552, a=0x5}\n"
    monitor.read("".join(shake % (host, host) for host in range(200)).splitlines())
    assert len(reported) == BURST
    monitor.read([door % key])
    assert [client for client, _ in reported[BURST:]] == ["usps"]
