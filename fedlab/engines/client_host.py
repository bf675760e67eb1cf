"""Clients of one process: the client app called for each message, with each client's own state."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol, runtime_checkable

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.common.constant import NUM_PARTITIONS_KEY, PARTITION_ID_KEY, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto

from fedlab.comm.messages import with_content
from fedlab.engines.flower_internals import copy_records
from fedlab.errors import RunError
from fedlab.exits import exits_as_errors

RUN_ID = 1
FIRST_NODE = 1001  # id of the node that has partition 0

App = Callable[[Message, Context], Message]


def node_partitions(partitions: int) -> dict[int, int]:
    """Return node id to partition of so many clients."""
    return {FIRST_NODE + partition: partition for partition in range(partitions)}


@runtime_checkable
class TrainsMany(Protocol):
    """A client app that can train several clients at once."""

    def train_many(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        """Return the replies to training messages, in their order.

        Clients differ in their partitions and states only. Messages that had one content when they were sent share a
        copy of it, of which no client may change the records.
        """
        ...


class ClientHost:
    """Calls the client app for the messages of any client.

    Parameters
    ----------
    client_app
        The app of every client.
    run_config
        Flower's run config, as every app's context shows it.
    partitions
        Node id to partition; the partition is in the node config, as in Flower's simulation.
    isolate
        True if messages go through Flower's serialization, as on a network. Else a client reads the very tensors that
        the server sent: it must not change them in place.
    vectorize
        Number of clients that are trained at once where their app can do that; 0: one after another.
    """

    def __init__(
        self,
        client_app: App,
        run_config: Mapping[str, Any],
        partitions: Mapping[int, int],
        isolate: bool = False,
        vectorize: int = 0,
    ) -> None:
        self.client_app, self.run_config, self.partitions, self.isolate = client_app, run_config, partitions, isolate
        self.vectorize = vectorize if isinstance(client_app, TrainsMany) else 0
        self.states: dict[int, RecordDict] = {}  # node id to the state that its app left, where it left any

    def context(self, node: int) -> Context:
        """Return a copy of a client's context, so that a client that fails leaves no trace."""
        config: dict[str, bool | float | int | str] = {
            PARTITION_ID_KEY: self.partitions[node],
            NUM_PARTITIONS_KEY: len(self.partitions),
        }
        state = deepcopy(self.states[node]) if node in self.states else RecordDict()
        return Context(RUN_ID, node, config, state, dict(self.run_config))

    def answer_many(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies of several clients, trained at once where that is asked for.

        Raises
        ------
        RunError
            When one of them changed the records of a message that it shares with others.
        """
        if self.vectorize < 2 or any(one.metadata.message_type != MessageType.TRAIN for one in messages):
            return [self.answer(message) for message in messages]
        assert isinstance(self.client_app, TrainsMany)
        contexts = [self.context(message.metadata.dst_node_id) for message in messages]
        if self.isolate:
            return self.client_app.train_many([self._received(message) for message in messages], contexts)
        contents = {id(message.content): message.content for message in messages}
        copies = {key: (content, copy_records(content)) for key, content in contents.items()}
        received = [with_content(message, copies[id(message.content)][1]) for message in messages]
        replies = self.client_app.train_many(received, contexts)
        readers = Counter(id(message.content) for message in messages)
        if any(readers[key] > 1 and _differ(*both) for key, both in copies.items()):
            raise RunError(
                "a client that trained with others at once (option vectorize) changed the records of its message, "
                "which they share; its strategy has to leave them as they are, or to copy them first"
            )
        return replies

    def answer(self, message: Message) -> Message:
        """Return a client's reply; an exception of its app becomes an error reply with the traceback."""
        received = self._received(message)
        context = self.context(message.metadata.dst_node_id)
        try:
            with exits_as_errors():
                reply = self.client_app(received, context)
        except Exception:
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, traceback.format_exc()), reply_to=received)
        if context.state or context.node_id in self.states:  # an app may have emptied what it had left
            self.states[context.node_id] = context.state
        return self._received(reply)

    def _received(self, message: Message) -> Message:
        """Return a message as its receiver gets it."""
        if self.isolate:
            return message_from_proto(message_to_proto(message))
        return message if message.has_error() else by_reference(message)


def by_reference(message: Message) -> Message:
    """Return a message of the same records, of which the receiver may add, replace and delete entries."""
    return with_content(message, copy_records(message.content))


def _differ(sent: RecordDict, received: RecordDict) -> bool:
    """Return True if the received copy of a content has other records or entries than the content."""
    return sent.keys() != received.keys() or any(
        record.keys() != received[name].keys() or any(received[name][key] is not value for key, value in record.items())
        for name, record in sent.items()
    )
