"""Default engine: a Flower grid that delivers a message by calling the client app.

It runs the same ServerApp and ClientApp as the other engines, with Flower's own messages, in this process and thread:
no ports, no pickling, no start-up time. Each message still goes through Flower's serialization, so that clients are as
isolated from each other, and from the server, as they are on a network.

**Source**: the interface is ``flwr.serverapp.Grid`` (flwr 1.39).
"""

from __future__ import annotations

import itertools
import logging
import traceback
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid, ServerApp

from fedlab.config.schema import Config
from fedlab.engines.flower_internals import Run, empty_run, set_message_id, task_identity
from fedlab.engines.spec import Apps, flower_config
from fedlab.runs.directory import use_directory

RUN_ID = 1


class InProcessGrid(Grid):
    """Grid that delivers messages to clients by calling them, one message at each pull.

    Parameters
    ----------
    client_app
        The app of every client.
    run_config
        Flower's run config, as every app's context shows it.
    partitions
        Number of clients; client ``i`` gets partition ``i`` in its node config, as in Flower's simulation.
    """

    def __init__(self, client_app: ClientApp, run_config: Mapping[str, Any], partitions: int) -> None:
        self.client_app = client_app
        self.contexts = {
            node: Context(
                run_id=RUN_ID,
                node_id=node,
                node_config={PARTITION_ID_KEY: partition, NUM_PARTITIONS_KEY: partitions},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition, node in enumerate(range(1001, 1001 + partitions))
        }
        self._waiting: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._run = empty_run(RUN_ID)

    def set_run(self, run: Run) -> None:
        """Replace the run record."""
        self._run = run

    @property
    def run(self) -> Run:
        """Run record; there is one run only."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message, in Flower's older style."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the nodes of all clients, which are always connected."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages until they are pulled; return their ids."""
        numbered = [(f"message-{next(self._numbers)}", message) for message in messages]
        for message_id, message in numbered:
            set_message_id(message, message_id)
            self._waiting[message_id] = message
        return [message_id for message_id, _ in numbered]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Deliver the oldest waiting message to its client and return the reply."""
        wanted = set(message_ids)
        message_id = next((waiting for waiting in self._waiting if waiting in wanted), None)
        return [] if message_id is None else [self._deliver(self._waiting.pop(message_id))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return all replies; a function call does not time out."""
        waiting = self.push_messages(messages)
        return [reply for _ in waiting for reply in self.pull_messages(waiting)]

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        received = message_from_proto(message_to_proto(message))
        context = deepcopy(self.contexts[node])
        try:
            reply = self.client_app(received, context)
        except Exception:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, traceback.format_exc()), reply_to=received)
        self.contexts[node] = context  # the state of a failed client is not changed, as on Flower's engines
        return message_from_proto(message_to_proto(reply))


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation in this process and thread."""
    server, client = apps.load()
    assert isinstance(server, ServerApp) and isinstance(client, ClientApp)
    with use_directory(directory):
        run(server, client, flower_config(config), len(config.clients))


def run(server_app: ServerApp, client_app: ClientApp, run_config: Mapping[str, Any], partitions: int) -> None:
    """Run one federation to its end in this thread; exceptions of the ServerApp propagate unchanged."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)  # the run directory has what Flower's log would say
    context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config))
    try:
        with task_identity(RUN_ID, SUPERLINK_NODE_ID):
            server_app(InProcessGrid(client_app, run_config, partitions), context)
    finally:
        log.setLevel(level)
