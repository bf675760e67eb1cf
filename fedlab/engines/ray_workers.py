"""Workers of a pool whose clients are answered for by Ray actors: the driver process, and an actor.

For each socket that the driver gets it has a thread that answers tasks as a forked worker does (``pool_worker.py``);
clients' work is done by whichever actor is free. An actor that is lost with its machine is replaced, and its messages
are repeated: what a client computes depends on the message and its state alone.
"""

from __future__ import annotations

import array
import json
import logging
import os
import socket
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import ray
from flwr.app import Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from ray.exceptions import RayError

from fedlab.engines.flower_internals import message_with, set_task_identity
from fedlab.engines.packing import Described, pack, unpack
from fedlab.engines.pool_worker import Setup, Worker, client_host, receive_descriptors
from fedlab.engines.processes import MARKER_ENV
from fedlab.engines.ray_actors import ActorPool, Question, another_takes_it, note
from fedlab.engines.ray_cluster import BLAS_THREADS
from fedlab.environment import search_paths, settings, versions_here
from fedlab.errors import ConfigError

LARGE_RECORD, KEPT_RECORDS = 100_000, 4  # bytes from which on a record goes by reference; those of a worker
Packed = tuple[dict[str, Described], bytearray]
Parts = list[Packed | ray.ObjectRef[Packed]]  # of a content: its records, those in Ray's object store by reference
Request = tuple[Metadata, Parts, Packed | None]  # of a message: metadata, content and the client's state
Reply = tuple[Metadata, Error | Packed, Packed | None]  # of a reply likewise; an error has no content


class ClientActor:
    """Clients of a process that Ray started on one of its machines.

    Parameters
    ----------
    versions
        Those of the run, as of :func:`fedlab.environment.versions_here`.
    folder
        Current folder of the clients; empty: that of Ray.

    Raises
    ------
    ConfigError
        When this machine has others.
    """

    def __init__(self, setup: Setup, versions: str, folder: str) -> None:
        if versions_here() != versions:
            raise ConfigError(f"{socket.gethostname()} has {versions_here()}, and the run has {versions}")
        if folder:
            os.chdir(folder)
        self.host = client_host(setup)

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Return the replies to some messages."""
        messages = []
        for metadata, content, state in requests:
            if state is not None:
                self.host.states[metadata.dst_node_id] = unpack(*state)
            records = RecordDict()
            for part in content:
                records.update(unpack(*(ray.get(part) if isinstance(part, ray.ObjectRef) else part)))
            messages.append(message_with(records, metadata))
        replies = self.host.answer_many(messages)
        return [
            _reply(reply, self.host.states.pop(message.metadata.dst_node_id, None))
            for reply, message in zip(replies, messages, strict=True)
        ]


def _reply(reply: Message, state: RecordDict | None) -> Reply:
    body = reply.error if reply.has_error() else pack(reply.content)
    return reply.metadata, body, None if state is None else pack(state)


class Driver:
    """The connection of this process to Ray, and the actors of one run.

    Parameters
    ----------
    address
        The cluster; empty: this process starts a private Ray.
    slots
        Number of actors.
    cpus, gpus
        Reserved for each of them.
    folder
        Current folder of the clients; empty: that of Ray.
    """

    def __init__(self, address: str, slots: int, cpus: float, gpus: float, folder: str) -> None:
        self.address, self.slots, self.cpus, self.gpus, self.folder = address, slots, cpus, gpus, folder
        variables = {**search_paths(), BLAS_THREADS: os.environ[BLAS_THREADS]}
        joining: dict[str, Any] = {"runtime_env": {"env_vars": variables}}
        private: dict[str, Any] = {"num_cpus": slots, "include_dashboard": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of Ray, about its own next version
            ray.init(address=address or "local", logging_level=logging.ERROR, **(joining if address else private))
        self._actors: ActorPool | None = None

    def host(self, setup: Setup, given_up: Question) -> RemoteHost:
        """Return the host of a worker. The first one says what the actors are to be, and waits until there is one.

        Parameters
        ----------
        given_up
            Returns True once nobody waits for this worker any more.

        Raises
        ------
        RayError
            When that is so before there is an actor.
        """
        if self._actors is None:
            self._actors = self._ask_for_actors(setup)
            self._actors.wait_for_one(self.address, given_up)
        return RemoteHost(self._actors, setup.partitions, given_up)

    def _ask_for_actors(self, setup: Setup) -> ActorPool:
        set_task_identity(setup.run_id, setup.server_node)
        own = {name: value for name, value in settings().items() if name != MARKER_ENV}  # it is this machine's
        told = replace(setup, environment={**own, **setup.environment})
        options: Any = ray.remote(ClientActor).options(num_cpus=self.cpus, num_gpus=self.gpus)
        return ActorPool(lambda: options.remote(told, versions_here(), self.folder), self.slots, self.cpus, self.gpus)


class SentRecords:
    """Large records in Ray's object store: one that several clients are sent is packed and put there once.

    The newest ``KEPT_RECORDS`` stay there, with the records themselves, so that no other one gets their id.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[Any, ray.ObjectRef[Packed]]] = {}  # by id and name of a record

    def parts(self, content: RecordDict) -> Parts:
        """Return the records of a content as they travel.

        Raises
        ------
        RayError
            When the object store has no room.
        """
        return [self._part(name, record) for name, record in content.items()]

    def _part(self, name: str, record: Any) -> Packed | ray.ObjectRef[Packed]:
        key = id(record), name
        if kept := self._kept.pop(key, None):
            self._kept[key] = kept  # the newest again
            return kept[1]
        packed = pack({name: record})
        if len(packed[1]) < LARGE_RECORD:
            return packed
        self._kept[key] = record, ray.put(packed)
        for oldest in list(self._kept)[:-KEPT_RECORDS]:
            del self._kept[oldest]
        return self._kept[key][1]


class RemoteHost:
    """Clients of a worker, answered for by actors.

    Parameters
    ----------
    actors
        Those of the run, for all its workers.
    partitions
        Node id to partition.
    given_up
        Returns True once nobody waits for this worker's replies any more.

    Attributes
    ----------
    states
        Node id to the client's Flower state.
    """

    def __init__(self, actors: ActorPool, partitions: Mapping[int, int], given_up: Question) -> None:
        self.actors, self.partitions, self.given_up = actors, partitions, given_up
        self.states: dict[int, RecordDict] = {}
        self.sent = SentRecords()

    def answer_many(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies of several clients; where no actor could answer, errors with the reason."""
        requests: list[Request] = []
        clients = ", ".join(str(self.partitions[message.metadata.dst_node_id]) for message in messages)
        try:
            for message in messages:
                left = self.states.pop(message.metadata.dst_node_id, None)
                requests.append(
                    (message.metadata, self.sent.parts(message.content), None if left is None else pack(left))
                )
            replies: list[Reply] = self.actors.run(
                lambda actor: actor.answer.remote(requests),
                self.given_up,
                lambda lost: note(another_takes_it(clients, lost)),
            )
        except RayError as error:
            failed = Error(ErrorCode.CLIENT_APP_CRASHED, explain(error))
            return [Message(failed, reply_to=message) for message in messages]
        for message, (_, _, state) in zip(messages, replies, strict=True):
            if state is not None:
                self.states[message.metadata.dst_node_id] = unpack(*state)
        return [message_with(body if isinstance(body, Error) else unpack(*body), own) for own, body, _ in replies]


def explain(error: RayError) -> str:
    """Return why no actor answered: what the last line of Ray's text says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines or [type(error).__name__])[-1].removeprefix(f"{ConfigError.__module__}.{ConfigError.__name__}: ")
    return (
        f"no process of the Ray cluster could answer for this client: {said}. All machines need {versions_here()}, the "
        "same packages, and the files of the run and of its app under the same paths"
    )


def serve_actors(control: int, options: str) -> None:
    """Start a worker for each descriptor that comes over the socket ``control``, until its other end is closed.

    Parameters
    ----------
    options
        JSON of the parameters of :class:`Driver`.
    """
    driver = Driver(**json.loads(options))
    with socket.socket(fileno=control) as stream:
        number = 0
        while descriptors := receive_descriptors(stream):
            for descriptor in descriptors:
                worker = _start(Connection(descriptor), driver)
                threading.Thread(target=_serve, args=(worker,), daemon=True).start()
                number += 1
                stream.sendall(array.array("q", [number]).tobytes())
    ray.shutdown()
    os._exit(0)


def _start(connection: Connection, driver: Driver) -> Worker:
    """Return a worker whose parent, once it has sent the setup and then tasks, waits: only an end is heard from it."""
    return Worker(connection, lambda setup: driver.host(setup, connection.poll))


def _serve(worker: Worker) -> None:
    try:
        worker.serve()
    except (EOFError, ConnectionError):
        pass
    finally:
        worker.connection.close()  # of a bug, too: the parent finds its worker dead
