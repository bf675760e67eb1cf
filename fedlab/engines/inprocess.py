"""Engine of one process: a Flower grid that delivers a message by calling the client app.

It runs the same ServerApp and ClientApp as the other engines, with Flower's own messages, in this process and thread:
no ports, no serialization, no start-up time. Clients read the server's tensors by reference; one that changes them in
place ends the run with its name, and ``inprocess.isolate`` serializes every message as a network does.

**Source**: the interface is ``flwr.serverapp.Grid`` (flwr 1.39).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp

from fedlab.comm.replies import WINDOW
from fedlab.comm.tensors import WriteGuard
from fedlab.config.engine_options import DEFAULT_INPROCESS, InProcessConfig
from fedlab.config.schema import Config
from fedlab.engines.client_host import RUN_ID, ClientHost, node_partitions
from fedlab.engines.flower_internals import Run, empty_run, set_message_id, task_identity
from fedlab.engines.pool_worker import Setup
from fedlab.engines.spec import Apps, flower_config
from fedlab.errors import RunError
from fedlab.references import load_reference
from fedlab.runs.directory import RUN_DIRECTORY, use_directory
from fedlab.seeds import exclusive
from fedlab.startup import settled
from fedlab.training import resolve_device

OpenGrid = Callable[[Setup, Any, Path], AbstractContextManager[Grid]]

PULL_SECONDS = 0.05  # after which a pull begins no further client, so that replies are seen as they come


class LocalGrid(Grid):
    """Grid whose clients are on this machine and always connected; a subclass delivers the waiting messages.

    Attributes
    ----------
    partitions
        Node id to partition, so that no client has to be asked for its own.
    """

    def __init__(self, partitions: Mapping[int, int]) -> None:
        self.partitions = partitions
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
        """Return the nodes of all clients."""
        return list(self.partitions)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages until they are pulled; return their ids."""
        numbered = [(f"message-{next(self._numbers)}", message) for message in messages]
        for message_id, message in numbered:
            set_message_id(message, message_id)
            self._waiting[message_id] = message
        return [message_id for message_id, _ in numbered]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return replies to some of the messages."""
        raise NotImplementedError

    def pull_until(self, message_ids: Iterable[str], deadline: float) -> list[Message]:
        """Return replies to some of the messages; none after ``deadline`` (``time.monotonic()``).

        A pull does the clients' work. So the deadline acts between two pulls.
        """
        return self.pull_messages(message_ids) if time.monotonic() <= deadline else []

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Forget messages whose clients have not begun."""
        for message_id in message_ids:
            self._waiting.pop(message_id, None)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return all replies; there is no timeout."""
        waiting = dict.fromkeys(self.push_messages(messages))
        replies: list[Message] = []
        while waiting:
            for reply in self.pull_messages(waiting):
                del waiting[reply.metadata.reply_to_message_id]
                replies.append(reply)
        return replies


class InProcessGrid(LocalGrid):
    """Grid that delivers messages to clients by calling them, at each pull one, or as many as train at once.

    Where they are quick it is more of them: a pull goes on with others until it has lasted for ``PULL_SECONDS``.

    Parameters
    ----------
    host
        The clients.

    Attributes
    ----------
    window
        Replies that are asked for at a time.
    after_first
        Called once, when the first clients have answered.
    """

    def __init__(self, host: ClientHost) -> None:
        super().__init__(host.partitions)
        self.host = host
        self.after_first: Callable[[], None] | None = None
        self.window = max(WINDOW, host.vectorize)
        self._guarded: dict[int, tuple[RecordDict, WriteGuard]] = {}  # id of a content, which is kept as long

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Deliver the first of the messages to their clients and return the replies.

        Raises
        ------
        RunError
            When a client changed in place what the server sent.
        """
        waiting = [one for one in message_ids if one in self._waiting]
        at_once, replies, end = max(1, self.host.vectorize), list[Message](), time.monotonic() + PULL_SECONDS
        for start in range(0, len(waiting), at_once):
            replies += self._deliver([self._waiting.pop(one) for one in waiting[start : start + at_once]])
            if time.monotonic() > end:
                break
        self._guarded.clear()
        if replies and self.after_first is not None:
            self.after_first()
            self.after_first = None
        return replies

    def _deliver(self, messages: list[Message]) -> list[Message]:
        guards = [self._guard(message.content) for message in messages]
        replies = self.host.answer_many(messages)
        for message, guard in zip(messages, guards, strict=True):
            if changed := guard.changed():
                raise change_refused(self.host.partitions[message.metadata.dst_node_id], changed)
        return replies

    def _guard(self, content: RecordDict) -> WriteGuard:
        """Return the guard of a content; one that several messages of a pull share has one."""
        if id(content) not in self._guarded:
            self._guarded[id(content)] = content, WriteGuard([content])
        return self._guarded[id(content)][1]


def change_refused(partition: int, changed: list[str]) -> RunError:
    """Return the error of a client that changed in place what the server sent."""
    return RunError(
        f"the client of partition {partition} changed the arrays that the server sent in place "
        f"({', '.join(changed[:3])}), which every client reads; clone them first (engine=inprocess with "
        "inprocess.isolate=true gives each client a copy)"
    )


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation in this process and thread."""
    options = config.engine if isinstance(config.engine, InProcessConfig) else DEFAULT_INPROCESS
    run_on(open_grid, options, apps, config, directory)


@contextmanager
def open_grid(setup: Setup, options: InProcessConfig, directory: Path) -> Iterator[InProcessGrid]:
    """Yield a grid whose clients are in this process; the client app is imported here."""
    app = load_reference(setup.client_app)
    host = ClientHost(app, setup.run_config, setup.partitions, options.isolate, setup.vectorize)
    grid = InProcessGrid(host)
    with settled() as grid.after_first:
        yield grid


def run_on(open_grid: OpenGrid, options: Any, apps: Apps, config: Config, directory: Path) -> None:
    """Run a configured federation with the ServerApp in this thread, on a grid that reaches the clients.

    Parameters
    ----------
    open_grid
        Opens the grid, as the ``clients`` of an :class:`fedlab.engines.spec.EngineSpec`.
    options
        Those of the engine.
    """
    server = load_reference(apps.server)
    assert isinstance(server, ServerApp)
    setup = Setup(
        apps.client,
        flower_config(config),
        node_partitions(len(config.clients)),
        RUN_ID,
        SUPERLINK_NODE_ID,
        vectorize=config.run.clients_at_once(resolve_device(config.run.device).type) if config.run.vectorizes else 0,
        environment={RUN_DIRECTORY: str(directory)},
    )
    opened = open_grid(setup, options, directory)
    with exclusive(f"run {directory.name}"), use_directory(directory), opened as grid:
        run_server(server, grid, setup.run_config)


def run_server(server_app: ServerApp, grid: Grid, run_config: Mapping[str, Any]) -> None:
    """Run a ServerApp on a grid of this process to its end; its exceptions propagate unchanged."""
    context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(run_config))
    with quiet_flower(), task_identity(RUN_ID, SUPERLINK_NODE_ID):
        server_app(grid, context)


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Let Flower log warnings only: the run directory has what its other lines would say."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
