"""Flower's SuperLink and SuperNode as processes of this package, and the commands that they start by name.

**Source**: Flower 1.39, flwr/supercore/constant.py, flwr/server/superlink/linkstate/in_memory_linkstate.py,
flwr/client/grpc_rere_client/connection.py, flwr/supernode/start_client_internal.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message

# started by their name on the PATH: the command, and its entry point
SUPEREXEC = {"flower-superexec": "flwr.supercore.cli:flower_superexec"}  # by SuperLink and SuperNode
SERVER_APP = {"flwr-serverapp": "flwr.superlink.cli:flwr_serverapp"}  # by the SuperExec of the SuperLink
CLIENT_APP = {"flwr-clientapp": "flwr.supernode.cli:flwr_clientapp"}  # by that of a SuperNode

DEACTIVATE_TIMEOUT = 10.0  # seconds for the server's answer
MAX_SLEEP = 0.3  # seconds


def run_superlink() -> None:
    """Run Flower's SuperLink in this process; the replies of nodes that have left count, see :func:`keep_replies`."""
    from flwr.superlink import cli

    keep_replies()
    delete_with_objects()
    cli.flower_superlink()


def keep_replies() -> None:
    """Let the SuperLinks of this process deliver a reply that they hold although its node has left meanwhile.

    Flower looks first whether the node is connected, and if it is not, the reply is lost: that of a client which leaves
    after its last round, or whose network fails, before the server has asked for it.
    """
    from flwr.server.superlink.linkstate import in_memory_linkstate as module
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.object_store import NoObjectInStoreError

    get_message_res = InMemoryLinkState.get_message_res

    def is_complete(state: InMemoryLinkState, reply_id: str) -> bool:
        try:
            tree = state.object_store.get_object_tree(reply_id)
        except NoObjectInStoreError:
            return False
        return all(state.object_store.get(part.object_id) for part in iterate_object_tree(tree))

    def get_replies(self: InMemoryLinkState, message_ids: set[str], run_id: int) -> list[Message]:
        with self.lock:
            replies, now = self.message_ins_id_to_message_res_id, module.__dict__["now"]().timestamp()
            left = {}  # node that has left a complete reply -> when it left
            for message_id in message_ids & replies.keys():
                node = self.nodes.get(self.message_ins_store[message_id].metadata.dst_node_id)
                if node and (node.online_until or 0.0) < now and is_complete(self, replies[message_id]):
                    left[node.node_id] = node.online_until
                    node.online_until = float("inf")
            try:
                return get_message_res(self, message_ids, run_id)
            finally:
                for node_id, online_until in left.items():
                    self.nodes[node_id].online_until = online_until

    InMemoryLinkState.get_message_res = get_replies  # type: ignore[method-assign]


def delete_with_objects() -> None:
    """Let the SuperLinks of this process delete a message's objects with the message.

    Flower leaves that to the node which takes the message. Of one that dies before, a model lay in memory until the end
    of the run.
    """
    from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState

    delete_messages = InMemoryLinkState.delete_messages

    def delete(self: InMemoryLinkState, message_ins_ids: set[str]) -> None:
        delete_messages(self, message_ins_ids)
        for message_id in message_ins_ids:
            self.object_store.delete(message_id)  # nothing where the node took it

    InMemoryLinkState.delete_messages = delete  # type: ignore[method-assign]


def deactivate_node(address: str, authority: Path, key: EllipticCurvePrivateKey, node_id: int) -> bool:
    """Deregister a dead SuperNode from its SuperLink, authenticated with its key.

    A SuperLink counts a SuperNode that was killed as connected until its heartbeats have been missing for a minute,
    rejects another with the same key, and waits for the replies of the dead one.

    Returns
    -------
    bool
        False when the server does not know such a node as connected, or does not answer.
    """
    import grpc
    from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.proto.fleet_pb2_grpc import FleetStub
    from flwr.supercore.grpc import create_channel
    from flwr.supercore.interceptors import RuntimeVersionClientInterceptor

    interceptors = [
        RuntimeVersionClientInterceptor(component_name="SuperNode"),
        NodeAuthClientInterceptor(key, key.public_key()),
    ]
    channel = create_channel(address, False, authority.read_bytes(), interceptors=interceptors)
    try:
        FleetStub(channel).DeactivateNode(DeactivateNodeRequest(node_id=node_id), timeout=DEACTIVATE_TIMEOUT)
    except grpc.RpcError:
        return False
    finally:
        channel.close()
    return True


class CappedSleepClock:
    """Stand-in for the module ``time`` that sleeps at most ``MAX_SLEEP`` seconds."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep for ``seconds``, or ``MAX_SLEEP`` if that is shorter."""
        time.sleep(min(seconds, MAX_SLEEP))

    def __getattr__(self, name: str) -> Any:
        """Return any other attribute of the module ``time``."""
        return getattr(time, name)


def run_supernode() -> None:
    """Run Flower's SuperNode in this process, asking for messages every ``MAX_SLEEP`` seconds.

    Flower asks every three seconds, twice a round; where rounds are short, that is most of the time. The pause is no
    setting of Flower's, so its module gets a :class:`CappedSleepClock`.
    """
    from flwr.supernode import cli, start_client_internal

    start_client_internal.__dict__["time"] = CappedSleepClock()
    cli.flower_supernode()
