"""Engine of several processes on this machine: workers that are forked from one process and call the client app.

Weights are written once a round into memory that all workers map. A worker gets a few messages at a time, in the order
of partitions; one that dies is replaced, and its messages are repeated. The results have the bits of one process with
the same number of threads.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from fedlab.config.engine_options import DEFAULT_POOL, PoolConfig
from fedlab.config.schema import Config
from fedlab.engines.flower_internals import message_with
from fedlab.engines.inprocess import LocalGrid, change_refused, run_on
from fedlab.engines.packing import Described, SharedRecord, pack, unpack
from fedlab.engines.pool_worker import (
    MAX_DESCRIPTORS,
    Answer,
    Setup,
    Task,
    block_size,
    receive_block,
    send_block,
    send_descriptors,
)
from fedlab.engines.processes import usable_cpus
from fedlab.engines.spec import Apps
from fedlab.engines.worker_processes import WorkerProgram, WorkerStarter

MAX_BATCH = 8  # messages that a worker gets at a time: enough to hide the way, few enough to share the work evenly
PULL_SECONDS = 1.0  # in which a pull waits for a reply
WORKER_LOG = "workers.log"  # in the run directory
MAX_DEATHS = 2  # workers that a message may cost before it fails


@dataclass
class WorkerHandle:
    """A worker as its parent sees it.

    Attributes
    ----------
    connection, number
        Its end of the socket, and the number by which it was started.
    known, forget
        Numbers of the shared records that it has, and of those among them that it is still to be told to forget.
    sent
        Ids of the messages that it has not answered, in order.
    """

    connection: Connection
    number: int
    known: set[int] = field(default_factory=set)
    forget: list[int] = field(default_factory=list)
    sent: deque[str] = field(default_factory=deque)


class PoolGrid(LocalGrid):
    """Grid whose clients are answered for by worker processes.

    Parameters
    ----------
    setup
        What each worker is told.
    workers
        Their number.
    environments
        Environment variables of each worker, for instance the GPU that it sees.
    program
        Starts workers; None: forks of a process that has imported what they need.

    Attributes
    ----------
    window
        Replies that are asked for at a time: enough to keep every worker busy.
    """

    def __init__(
        self,
        setup: Setup,
        workers: int,
        environments: Sequence[Mapping[str, str]] = ({},),
        program: WorkerProgram | None = None,
    ) -> None:
        super().__init__(setup.partitions)
        self.starter = WorkerStarter(program or forks(setup))
        self.setup, self.count, self.environments = setup, workers, environments
        self.batch = max(MAX_BATCH, setup.vectorize)
        self.window = 2 * workers * self.batch
        self.workers: dict[int, WorkerHandle] = {}  # by the number of their place
        self.shared: dict[int, tuple[int, SharedRecord]] = {}  # id of a record to its number
        self._next_number = 0
        self._uses: Counter[int] = Counter()  # id of a record to the waiting messages that hold it
        self._deaths: Counter[str] = Counter()
        self._alone: set[str] = set()  # messages that go to a worker alone, since one died with them
        self._ready: list[Message] = []
        self._messages: dict[str, Message] = {}  # at the workers
        self._states: dict[int, RecordDict] = {}

    # --- messages ---

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages until they are pulled; return their ids."""
        messages = list(messages)
        for message in messages:
            self._uses.update(map(id, message.content.values()))
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Give waiting messages to idle workers, wait for an answer, and return the replies that came.

        Raises
        ------
        RunError
            When a client changed in place what the server sent, or no worker can be started.
        """
        replies: list[Message] = []
        wanted = list(message_ids)
        while not replies and any(one in self._waiting or one in self._messages for one in wanted):
            replies = self.pull_until(wanted, float("inf"))
        return replies

    def pull_until(self, message_ids: Iterable[str], deadline: float) -> list[Message]:
        """Give waiting messages to idle workers, and return the replies that come within ``PULL_SECONDS``.

        After ``deadline`` (``time.monotonic()``) no client begins, and what is there is returned.

        Raises
        ------
        RunError
            When a client changed in place what the server sent, or no worker can be started.
        """
        left = min(max(deadline - time.monotonic(), 0.0), PULL_SECONDS)
        queue = deque(one for one in message_ids if one in self._waiting) if left else deque[str]()
        for place in range(self.count):
            if not queue:
                break
            if place not in self.workers or not self.workers[place].sent:
                self._give(place, queue)
        busy = {handle.connection: place for place, handle in self.workers.items() if handle.sent}
        if not self._ready and busy:
            for connection in wait(list(busy), left):
                assert isinstance(connection, Connection)
                self._receive(busy[connection])
        replies, self._ready = self._ready, []
        return replies

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Forget messages; a worker that has one of them is killed, and what else it has is repeated by another."""
        given_up = set(message_ids)
        for place, handle in list(self.workers.items()):
            if given_up.intersection(handle.sent):
                self.starter.kill(handle.number)
                handle.connection.close()
                del self.workers[place]
                self._waiting = {**{name: self._messages.pop(name) for name in handle.sent}, **self._waiting}
        for name in given_up & self._waiting.keys():
            self._messages[name] = self._waiting.pop(name)
            self._finish(name)
        self._ready = [reply for reply in self._ready if reply.metadata.reply_to_message_id not in given_up]

    def _give(self, place: int, queue: deque[str]) -> None:
        """Give a worker its share of the queue."""
        parts = self.count if self.setup.vectorize else 2 * self.count
        count = max(1, min(self.batch, -(-len(queue) // parts)))
        names = [queue.popleft()]
        while queue and len(names) < count and not {names[0], queue[0]} & self._alone:
            names.append(queue.popleft())
        messages = [self._waiting[name] for name in names]
        handle = self._worker(place)
        described: list[tuple[Any, dict[str, int], dict[str, Described], dict[str, Described] | None]] = []
        blocks: list[bytearray] = []
        needed: dict[int, SharedRecord] = {}
        for message in messages:
            shared = {key: self._share(record) for key, record in message.content.items() if self._is_shared(record)}
            needed |= dict(shared.values())
            own, block = pack({key: record for key, record in message.content.items() if key not in shared})
            node = message.metadata.dst_node_id
            state, state_block = pack(self._states[node]) if node in self._states else (None, bytearray())
            numbers = {key: number for key, (number, _) in shared.items()}
            described.append((message.metadata, numbers, own, state))
            blocks += [block, state_block]
        new = {number: record for number, record in needed.items() if number not in handle.known}
        task = Task({number: record.described for number, record in new.items()}, described, handle.forget)
        try:
            handle.connection.send(task)
            self._send_shared(handle, new)
            for block in blocks:
                send_block(handle.connection, block)
        except (OSError, EOFError):  # it died meanwhile: noticed where answers are received
            pass
        handle.known, handle.forget = handle.known | new.keys(), []
        for name in names:
            handle.sent.append(name)
            self._messages[name] = self._waiting.pop(name)

    @staticmethod
    def _send_shared(handle: WorkerHandle, records: Mapping[int, SharedRecord]) -> None:
        files = [record.file.fileno() for record in records.values() if record.described.size]
        for start in range(0, len(files), MAX_DESCRIPTORS):
            handle.connection.recv_bytes()
            with socket.socket(fileno=os.dup(handle.connection.fileno())) as stream:
                send_descriptors(stream, files[start : start + MAX_DESCRIPTORS])

    def _receive(self, place: int) -> None:
        """Receive one answer of a worker, or find that it died."""
        handle = self.workers[place]
        name = handle.sent[0]
        message = self._messages[name]
        try:
            answer: Answer = handle.connection.recv()
            content = answer.content or {}
            reply_content = unpack(content, receive_block(handle.connection, block_size(content)))
            if answer.state is not None:
                block = receive_block(handle.connection, block_size(answer.state))
                self._states[message.metadata.dst_node_id] = unpack(answer.state, block)
        except (EOFError, OSError):
            self._replace(place)
            return
        handle.sent.popleft()
        if answer.changed:
            raise change_refused(self.partitions[message.metadata.dst_node_id], answer.changed)
        self._finish(name)
        body = answer.error if answer.error is not None else reply_content
        self._ready.append(message_with(body, answer.metadata))

    def _replace(self, place: int) -> None:
        """Put the messages of a worker that died back, each to be tried alone; fail the one that killed two."""
        handle = self.workers.pop(place)
        handle.connection.close()
        for number, name in enumerate(handle.sent):
            message = self._messages.pop(name)
            self._deaths[name] += number == 0  # the first one is what it worked on
            if self._deaths[name] >= MAX_DEATHS:
                reason = (
                    f"its process was killed {MAX_DEATHS} times while it worked for this client, mostly for want of "
                    "memory; use fewer processes (pool.workers), smaller batches, or a machine with more memory"
                )
                self._messages[name] = message
                self._finish(name)
                self._ready.append(Message(Error(ErrorCode.CLIENT_APP_CRASHED, reason), reply_to=message))
            else:
                self._alone.add(name)
                self._waiting = {name: message, **self._waiting}

    # --- arrays that several messages share ---

    def _is_shared(self, record: Any) -> bool:
        return self._uses[id(record)] > 1 or id(record) in self.shared

    def _share(self, record: Any) -> tuple[int, SharedRecord]:
        if id(record) not in self.shared:
            self.shared[id(record)] = self._next_number, SharedRecord(record)
            self._next_number += 1
        return self.shared[id(record)]

    def _finish(self, name: str) -> None:
        """Forget a message, and give back what no other message needs."""
        message = self._messages.pop(name)
        self._deaths.pop(name, None)
        self._alone.discard(name)
        for record in message.content.values():
            self._uses[id(record)] -= 1
            if not self._uses[id(record)]:
                del self._uses[id(record)]
                if id(record) in self.shared:
                    number, shared = self.shared.pop(id(record))
                    shared.close()
                    for handle in self.workers.values():
                        if number in handle.known:
                            handle.known.discard(number)
                            handle.forget.append(number)

    # --- processes ---

    def _worker(self, place: int) -> WorkerHandle:
        """Return the worker of a place, started if there is none."""
        if place not in self.workers:
            ours, theirs = socket.socketpair()
            connection = Connection(ours.detach())
            variables = self.environments[place % len(self.environments)]
            setup = replace(self.setup, environment=variables)
            number = self.starter.start(theirs, lambda: connection.send(setup))
            self.workers[place] = WorkerHandle(connection, number)
        return self.workers[place]

    def prepare(self) -> None:
        """Start the first worker now: on a cluster there may be no room for one, which is waited for.

        Raises
        ------
        RunError
            When none can be started.
        """
        self._worker(0)

    @contextmanager
    def running(self, log: Path) -> Iterator[None]:
        """Run the program that starts workers, and stop all of them at the end, however it comes.

        Parameters
        ----------
        log
            File for what the processes print.
        """
        with self.starter.running(log):
            try:
                yield
            finally:
                for handle in self.workers.values():
                    handle.connection.close()
                for _, record in self.shared.values():
                    record.close()


def forks(setup: Setup) -> WorkerProgram:
    """Return the program whose workers are forks of one process, which imports once what they need."""
    module = str(setup.client_app).partition(":")[0]
    return WorkerProgram("fedlab.engines.pool_worker:serve_forks", ("torch", module))


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation with clients in processes of their own."""
    options = config.engine if isinstance(config.engine, PoolConfig) else DEFAULT_POOL
    run_on(open_grid, options, apps, config, directory)


@contextmanager
def open_grid(setup: Setup, options: PoolConfig, directory: Path) -> Iterator[PoolGrid]:
    """Yield a grid whose clients are in worker processes of this machine; what they print is in ``workers.log``.

    Parameters
    ----------
    setup
        The client app, and all that its processes need.
    directory
        The run directory.
    """
    workers = number_of_workers(options, len(setup.partitions))
    grid = PoolGrid(setup, workers, [{**gpu, **setup.environment} for gpu in gpu_environments()])
    with grid.running(directory / WORKER_LOG):
        yield grid


def number_of_workers(options: PoolConfig, clients: int) -> int:
    """Return how many processes are used: as many as asked for, as GPUs have places, or as there are cores."""
    places = torch.cuda.device_count() * options.clients_per_gpu if torch.cuda.is_available() else usable_cpus()
    return max(1, min(options.workers or places, clients))


def gpu_environments() -> list[dict[str, str]]:
    """Return the variables with which workers in turn see one GPU each; one without any where there is no GPU."""
    if not torch.cuda.is_available():
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]
