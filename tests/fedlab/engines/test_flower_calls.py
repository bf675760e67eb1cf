"""Calls to Flower's own Fleet API whose content does not come: who can hold how many, and who is served beside them."""

from __future__ import annotations

import threading
from datetime import timedelta
from importlib import import_module

import grpc
import pytest
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from flwr.superlink.federation import NoOpFederationManager

from fedlab.comm.credentials import CLOCK_AHEAD, CLOCK_BEHIND
from fedlab.engines import flower_calls
from fedlab.engines import grpc as grpc_engine
from fedlab.engines.processes import LOOPBACK, free_ports
from waiting import wait_until

METHOD = "/flwr.proto.Fleet/ActivateNode"
flower_superlink = import_module("flwr.superlink.cli.flower_superlink")


class Caller:
    """Somebody with a key, whose calls begin and do not end until they are told to."""

    def __init__(self, address):
        self.private, public = generate_key_pairs()
        self.key = public_key_to_bytes(public)
        channel = grpc.insecure_channel(address)
        self.call = channel.stream_unary(METHOD, ActivateNodeRequest.SerializeToString, ActivateNodeResponse.FromString)

    def head(self, signer=None, ahead=0):
        time = (now() + timedelta(seconds=ahead)).isoformat()
        signature = sign_message((signer or self).private, time.encode("ascii"))
        return ((PUBLIC_KEY_HEADER, self.key), (TIMESTAMP_HEADER, time), (SIGNATURE_HEADER, signature))

    def hold(self, signer=None):
        """Begin a call whose content does not come."""
        never = threading.Event()
        return self.call.future(iter(lambda: never.wait() or None, 1), metadata=self.head(signer), timeout=60)

    def ask(self, head=None):
        """Make a whole call; return how it ended."""
        request = ActivateNodeRequest(public_key=self.key, heartbeat_interval=30)
        try:
            self.call(iter([request]), metadata=head or self.head(), timeout=30)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"


@pytest.fixture
def server(monkeypatch):
    """Address of Flower's server with limits, its register of keys, and our interceptor."""
    monkeypatch.setattr(flower_superlink, "generic_create_grpc_server", flower_superlink.generic_create_grpc_server)
    monkeypatch.setattr(flower_calls, "MAX_CALLS", 2)
    limits = []

    class Limit(flower_calls.CallLimit):
        def __init__(self, is_registered):
            super().__init__(is_registered)
            limits.append(self)

    monkeypatch.setattr(flower_calls, "CallLimit", Limit)
    flower_calls.limit_calls_at_a_time()
    store = ObjectStoreFactory()
    states = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), store)
    address = f"{LOOPBACK}:{free_ports(1)[0]}"
    running = flower_superlink._run_fleet_api_grpc_rere(
        address, states, store, True, None, [NodeAuthServerInterceptor(states)]
    )
    yield address, states.state(), limits[0]
    running.stop(None)


def test_strangers_hold_a_few_calls_together_and_a_registered_client_is_served(server):
    address, state, limit = server
    one, other, client = Caller(address), Caller(address), Caller(address)
    state.create_node("owner", "us", client.key, 30)
    held = [one.hold(), other.hold()]
    wait_until(lambda: limit._calls[flower_calls.STRANGERS] == 2, "two calls that hold")
    assert one.ask() == "UNAVAILABLE"  # and not what Flower says to a stranger
    assert client.ask() == "OK"
    for call in held:
        call.cancel()
    wait_until(lambda: not limit._calls, "their end")
    assert one.ask() not in ("UNAVAILABLE", "OK")  # what Flower says to a stranger


def test_a_registered_client_has_its_own_calls_and_nobody_else_has_them(server):
    address, state, limit = server
    client, thief = Caller(address), Caller(address)
    state.create_node("owner", "us", client.key, 30)
    refused = client.hold(signer=thief)  # its public key, and a signature of another
    assert refused.code().name == "UNAUTHENTICATED"
    held = [client.hold(), client.hold()]
    wait_until(lambda: limit._calls[client.key] == 2, "two calls that hold")
    assert client.ask() == "UNAVAILABLE"
    assert thief.ask() not in ("UNAVAILABLE", "OK")
    for call in held:
        call.cancel()
    wait_until(lambda: not limit._calls, "their end")
    assert client.ask() == "OK"


def test_the_head_of_a_call_serves_once_whoever_has_it(server, monkeypatch):
    address, state, _ = server
    client, other, thief = Caller(address), Caller(address), Caller(address)
    for one in (client, other):
        state.create_node("owner", "us", one.key, 30)
    seen = client.head()
    assert client.ask(seen) == "OK"
    node = state.get_node_id_by_public_key(client.key)
    state.deactivate_node(node)
    assert thief.ask(seen) == client.ask(seen) == "UNAVAILABLE"  # by which Flower's SuperNode tries again, anew
    assert state.get_node_info(node_ids=[node])[0].status != "online"
    assert client.ask() == "OK"
    assert other.ask() == "OK"
    monkeypatch.setattr(flower_calls, "MAX_TIMES", 2)
    assert client.ask() == "UNAVAILABLE"


def test_a_time_is_known_as_long_as_flower_takes_it():
    begin = now()
    used = flower_calls.UsedTimes(310)
    used.use(begin, begin)
    with pytest.raises(flower_calls.TooManyCalls, match="made before"):
        used.use(begin, begin + timedelta(seconds=310))
    used.use(begin + timedelta(seconds=311), begin + timedelta(seconds=311))
    assert len(used._used) == 1


def test_a_client_whose_clock_is_wrong_is_named_and_a_stranger_is_not(server, capfd):
    address, state, _ = server
    client, stranger = Caller(address), Caller(address)
    state.create_node("owner", "us", client.key, 30)
    assert stranger.ask(stranger.head(ahead=3600)) == "UNAUTHENTICATED"
    assert client.ask(client.head(signer=stranger, ahead=3600)) == "UNAUTHENTICATED"
    assert flower_calls.CLOCK not in capfd.readouterr().err
    for ahead, code in ((CLOCK_AHEAD + 3, "UNAUTHENTICATED"), (-CLOCK_BEHIND - 3, "UNAUTHENTICATED"), (-290, "OK")):
        assert client.ask(client.head(ahead=ahead)) == code
    said = capfd.readouterr().err
    assert said.count(flower_calls.CLOCK) == 2
    reported = []
    grpc_engine.RejectionMonitor({"usps": client.key}, lambda *one: reported.append(one)).read(said.splitlines())
    assert [name for name, _ in reported] == ["usps", "usps"]
    assert "8 s ahead of this server" in reported[0][1] and "5 min behind" in reported[1][1]
