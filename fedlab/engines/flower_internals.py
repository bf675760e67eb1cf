"""A goodbye in a dead SuperNode's stead, signed with its key.

Flower's server counts a SuperNode that was killed as connected until it has missed its heartbeats for a minute, lets no
other in with the same key, and waits for what it was asked. Whoever has the key can say that it left.

**Source**: Flower 1.39, ``flwr/client/grpc_rere_client/connection.py``.
"""

from __future__ import annotations

from pathlib import Path

import grpc
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.supercore.grpc import create_channel
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor

from fedlab.comm import credentials

PATIENCE = 10.0  # seconds for the server's answer


def deactivate_node(address: str, certificates: Path, client: str, node: int) -> bool:
    """Tell the server that a client's node has left; False when it does not know such a node as connected."""
    key = credentials.client_key(certificates, client)
    signed = [
        RuntimeVersionClientInterceptor(component_name="SuperNode"),
        NodeAuthClientInterceptor(key, key.public_key()),
    ]
    channel = create_channel(address, False, (certificates / "ca.crt").read_bytes(), interceptors=signed)
    try:
        FleetStub(channel).DeactivateNode(DeactivateNodeRequest(node_id=node), timeout=PATIENCE)
    except grpc.RpcError:
        return False
    finally:
        channel.close()
    return True
