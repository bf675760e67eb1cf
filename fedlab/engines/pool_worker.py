"""Processes of the pool: one that has everything imported and forks workers, and workers that call the client app.

The parent starts the first one with a socket. For each descriptor that it gets over it, it forks a worker that answers
tasks on that descriptor. Everything ends when the parent's end of a socket is closed, however the parent ended.
"""

from __future__ import annotations

import array
import ctypes
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from flwr.app import Error, Message, RecordDict
from flwr.app.metadata import Metadata

from fedlab.comm.tensors import WriteGuard
from fedlab.engines.client_host import App, ClientHost
from fedlab.engines.flower_internals import message_with, set_task_identity
from fedlab.engines.packing import Described, Record, map_record, pack, unpack
from fedlab.references import load_reference
from fedlab.seeds import turns
from fedlab.startup import quick_imports

PR_SET_PDEATHSIG = 1  # of Linux: a signal when the parent process ends
MAX_DESCRIPTORS = 64  # in one message of a socket


@dataclass(frozen=True)
class Setup:
    """The run, and how to reach the client app: all that a worker is told before its first task.

    Attributes
    ----------
    client_app
        Import path of the app; for clients of this process, it may be the app itself.
    environment
        Variables of the processes of clients.
    """

    client_app: str | App
    run_config: Mapping[str, Any]
    partitions: Mapping[int, int]
    run_id: int
    server_node: int
    vectorize: int
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """Messages for one worker.

    Attributes
    ----------
    shared
        Number to description of the records that the worker has not seen; their descriptors follow in this order.
    messages
        For each message its metadata, record name to the number of a shared record, the description of its own
        records, and the client's Flower state, if it has any. The blocks of own records and states follow.
    forget
        Numbers of shared records that are not needed any more.
    """

    shared: dict[int, Described]
    messages: list[tuple[Metadata, dict[str, int], dict[str, Described], dict[str, Described] | None]]
    forget: list[int]


@dataclass(frozen=True)
class Answer:
    """Reply to one message: metadata, an error or the description of the content, and the client's new state."""

    metadata: Metadata
    error: Error | None
    content: dict[str, Described] | None
    state: dict[str, Described] | None
    changed: list[str]


def send_block(connection: Connection, block: bytearray) -> None:
    """Send a block; an empty one needs no bytes."""
    if block:
        connection.send_bytes(block)


def receive_block(connection: Connection, size: int) -> bytearray:
    """Receive a block of ``size`` bytes into memory of its own."""
    block = bytearray(size)
    if size:
        connection.recv_bytes_into(block)
    return block


def block_size(described: Mapping[str, Described]) -> int:
    """Return the size of the block of some records."""
    return sum(one.size for one in described.values())


class Host(Protocol):
    """Answers for clients, here or elsewhere.

    Attributes
    ----------
    states
        Node id to the client's Flower state.
    """

    states: dict[int, RecordDict]

    def answer_many(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies of several clients."""
        ...


class Worker:
    """Answers tasks on a connection until the other end is closed.

    Parameters
    ----------
    connection
        On which a :class:`Setup` comes first.
    make_host
        Makes the host that answers.
    """

    def __init__(self, connection: Connection, make_host: Callable[[Setup], Host]) -> None:
        self.connection, self.shared = connection, dict[int, Record]()
        setup: Setup = connection.recv()
        self.host, self.together = make_host(setup), setup.vectorize > 0

    def serve(self) -> None:
        """Answer tasks, one after another."""
        while True:
            self._answer(self.connection.recv())

    def _answer(self, task: Task) -> None:
        for number in task.forget:
            self.shared.pop(number, None)
        self._receive_shared(task.shared)
        messages = [self._message(*one) for one in task.messages]
        # One by one, an answer is with the server before the next client begins, which may never end.
        for some in [messages] if self.together else [[message] for message in messages]:
            guards = [WriteGuard([message.content]) for message in some]
            replies = self.host.answer_many(some)
            for reply, message, guard in zip(replies, some, guards, strict=True):
                self._send(reply, message.metadata.dst_node_id, guard.changed())

    def _receive_shared(self, wanted: Mapping[int, Described]) -> None:
        descriptors: list[int] = []
        filled = [number for number, described in wanted.items() if described.size]
        while len(descriptors) < len(filled):
            self.connection.send_bytes(b"")  # the parent sends descriptors only to who waits for them
            with socket.socket(fileno=os.dup(self.connection.fileno())) as stream:
                descriptors += receive_descriptors(stream)
        found = dict(zip(filled, descriptors, strict=True))
        for number, described in wanted.items():
            self.shared[number] = map_record(described, found.get(number, -1))
        for descriptor in descriptors:
            os.close(descriptor)

    def _message(
        self,
        metadata: Metadata,
        shared: Mapping[str, int],
        own: Mapping[str, Described],
        state: Mapping[str, Described] | None,
    ) -> Message:
        records: dict[str, Record] = {name: self.shared[number] for name, number in shared.items()}
        records |= dict(unpack(own, receive_block(self.connection, block_size(own))).items())
        if state is not None:
            self.host.states[metadata.dst_node_id] = unpack(state, receive_block(self.connection, block_size(state)))
        return message_with(RecordDict(records), metadata)

    def _send(self, reply: Message, node: int, changed: list[str]) -> None:
        content, block = (None, bytearray()) if reply.has_error() else pack(reply.content)
        state = self.host.states.pop(node, None)
        state_content, state_block = pack(state) if state is not None else (None, bytearray())
        error = reply.error if reply.has_error() else None
        self.connection.send(Answer(reply.metadata, error, content, state_content, changed))
        send_block(self.connection, block)
        send_block(self.connection, state_block)


def client_host(setup: Setup) -> ClientHost:
    """Return the clients of this process, which is nobody else's: it takes the environment of the setup."""
    os.environ.update(setup.environment)
    set_task_identity(setup.run_id, setup.server_node)
    app = load_reference(setup.client_app)
    return ClientHost(app, setup.run_config, setup.partitions, vectorize=setup.vectorize)


def send_descriptors(stream: socket.socket, descriptors: list[int]) -> None:
    """Send open files over a socket."""
    socket.send_fds(stream, [b"f"], descriptors)


def receive_descriptors(stream: socket.socket) -> list[int]:
    """Receive open files from a socket; none when the other end was closed."""
    data, descriptors, *_ = socket.recv_fds(stream, 1, MAX_DESCRIPTORS)
    return descriptors if data else []


def serve_forks(control: int, *modules: str) -> None:
    """Fork a worker for each descriptor that comes over the socket ``control``, until its other end is closed.

    Parameters
    ----------
    modules
        What workers need, imported once; a module that cannot be imported is an error of the worker's first task.
    """
    with quick_imports():
        for module in modules:
            with suppress(Exception):
                importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies; the parent sees a worker's end by its socket
    with socket.socket(fileno=control) as stream:
        while descriptors := receive_descriptors(stream):
            for descriptor in descriptors:
                process = os.fork()
                if not process:
                    stream.close()
                    _run_worker(descriptor)
                os.close(descriptor)
                stream.sendall(array.array("q", [process]).tobytes())


def _run_worker(descriptor: int) -> None:
    """Serve in a fork, and end it."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with turns():  # the clients of this process alone use its random generators
            Worker(Connection(descriptor), client_host).serve()
    except (EOFError, ConnectionError):
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
