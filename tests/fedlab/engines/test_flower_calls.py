"""Calls to Flower's own Fleet API whose content does not come: who can hold how many, and who is served beside them."""

from __future__ import annotations

import threading
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

from fedlab.engines import flower_calls
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

    def head(self, signer=None):
        time = now().isoformat()
        signature = sign_message((signer or self).private, time.encode("ascii"))
        return ((PUBLIC_KEY_HEADER, self.key), (TIMESTAMP_HEADER, time), (SIGNATURE_HEADER, signature))

    def hold(self, signer=None):
        """Begin a call whose content does not come."""
        never = threading.Event()
        return self.call.future(iter(lambda: never.wait() or None, 1), metadata=self.head(signer), timeout=60)

    def ask(self):
        """Make a whole call; return how it ended."""
        request = ActivateNodeRequest(public_key=self.key, heartbeat_interval=30)
        try:
            self.call(iter([request]), metadata=self.head(), timeout=30)
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
