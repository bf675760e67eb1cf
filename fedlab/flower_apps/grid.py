"""The grid of a Flower app: replies in the order of nodes, each message seen by the recorder, one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Message

from fedlab.comm.wrapped_grid import WrappedGrid
from fedlab.engines.flower_internals import RunNotRunning
from fedlab.engines.inprocess import LocalGrid
from fedlab.flower_apps.messages import kind_of
from fedlab.flower_apps.recorder import Recorder, phase_of
from fedlab.seeds import Stream


class RecordedGrid(WrappedGrid[LocalGrid]):
    """Grid around a local one.

    Parameters
    ----------
    grid
        The one that delivers the messages.
    recorder
        The object that is told of messages and replies.
    server_stream
        The server's random stream; it is left while clients answer, who have their own.
    """

    def __init__(self, grid: LocalGrid, recorder: Recorder, server_stream: Stream) -> None:
        super().__init__(grid)
        self.recorder, self.server_stream = recorder, server_stream
        self._lock = threading.RLock()  # Flower's older server sends from several threads
        self._sent: list[dict[str, Message]] = []  # messages by id, those sent together in one
        self._replies: dict[str, Message] = {}  # that were not pulled yet
        self._closed = False

    def close(self) -> None:
        """End the grid: a thread that still asks for its nodes is told that the run is over."""
        self._closed = True

    def get_node_ids(self) -> list[int]:
        """Return the nodes of all clients, in the order of partitions."""
        if self._closed:
            raise RunNotRunning
        return sorted(self.grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages until they, or later ones, are pulled; return their ids."""
        messages = list(messages)  # a strategy may make them lazily, on the server's random stream
        with self._lock:
            if self.recorder.begins_round(messages):
                self.deliver_all()  # what nobody has asked for yet belongs to the round that ends
            self.recorder.on_send(messages)
            names = list(self.grid.push_messages(messages))
            self._sent.append(dict(zip(names, messages, strict=True)))
            return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to some messages, in the order of nodes; clients answer earlier messages first."""
        with self._lock:
            wanted = set(message_ids)
            while any(wanted & batch.keys() for batch in self._sent):
                self._deliver(self._sent.pop(0))
            found = [name for name in self._replies if name in wanted]
            return [self._replies.pop(name) for name in found]

    def deliver_all(self) -> None:
        """Let clients answer what nobody has asked for, at the end of a round or a run."""
        with self._lock:
            while self._sent:
                self._deliver(self._sent.pop(0))

    def _deliver(self, batch: dict[str, Message]) -> None:
        """Let clients answer messages that were sent together; keep their replies in the order of nodes."""
        order = sorted(batch, key=lambda name: (batch[name].metadata.dst_node_id, int(name.rpartition("-")[2])))
        if not order:
            return
        replies = dict[str, Message]()
        with self._clients_turn(), self.recorder.clock(phase_of(kind_of(batch[order[0]]))):
            while left := [name for name in order if name not in replies]:
                for reply in self.grid.pull_messages(left):
                    name = reply.metadata.reply_to_message_id
                    self.recorder.on_reply(batch[name], reply)
                    replies[name] = reply
        self._replies |= {name: replies[name] for name in order}
        self.recorder.on_replies([replies[name] for name in order])

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return all replies in the order of nodes; there is no timeout."""
        return self.pull_messages(self.push_messages(messages))

    @contextmanager
    def _clients_turn(self) -> Iterator[None]:
        self.server_stream.__exit__()
        try:
            yield
        finally:
            self.server_stream.__enter__()
