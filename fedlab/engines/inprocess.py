"""The default engine: a Flower grid whose network is a function call.

It runs the very same ServerApp and ClientApp as the other engines, with Flower's own messages, in this process and
thread: no ports, no pickling, no start-up time. Each message still goes through Flower's serialisation, so that
clients are as isolated from each other, and from the server, as they are on a network.

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
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlab.config.schema import Config
from fedlab.engines.spec import Apps, flower_config
from fedlab.runs.directory import use_directory

RUN_ID = 1


class InProcessGrid(Grid):
    """Carries messages to clients by calling them, one message at each pull.

    Parameters
    ----------
    client_app
        The app of every client.
    run_config
        Flower's run config, as every app's context shows it.
    partitions
        How many clients there are; client ``i`` is told partition ``i`` as Flower's simulation does.
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
        self._run = Run.create_empty(run_id=RUN_ID)

    def set_run(self, run: Run) -> None:
        """Take over another run's record."""
        self._run = run

    @property
    def run(self) -> Run:
        """The one run there is."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message in Flower's older style."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Every client: all are always connected."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages until they are pulled."""
        numbered = [(f"message-{next(self._numbers)}", message) for message in messages]
        for message_id, message in numbered:
            message.metadata.__dict__["_message_id"] = message_id  # as Flower's own in-memory grid does
            self._waiting[message_id] = message
        return [message_id for message_id, _ in numbered]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the client of the oldest waiting message work, and hand out its reply."""
        wanted = set(message_ids)
        message_id = next((waiting for waiting in self._waiting if waiting in wanted), None)
        return [] if message_id is None else [self._deliver(self._waiting.pop(message_id))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """All replies; a function call does not time out."""
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
        self.contexts[node] = context  # what a failed client did to its state is not kept, as on Flower's engines
        return message_from_proto(message_to_proto(reply))


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation in this process and thread."""
    server, client = apps.load()
    assert isinstance(server, ServerApp) and isinstance(client, ClientApp)
    with use_directory(directory):
        run(server, client, flower_config(config), len(config.clients))


def run(server_app: ServerApp, client_app: ClientApp, run_config: Mapping[str, Any], partitions: int) -> None:
    """Run one federation to its end in this thread; what the ServerApp raises comes out as it is."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)  # the run directory tells what Flower's log would
    identity = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK_NODE_ID, 1
    context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config))
    try:
        server_app(InProcessGrid(client_app, run_config, partitions), context)
    finally:
        log.setLevel(level)
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = identity
