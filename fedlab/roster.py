"""From nodes to partitions: who is connected, and a grid on which that, and nothing random, decides the order.

Flower's node ids are random and replies come in any order, so Flower alone gives as many results as there are orders.
Here a node is asked once, by a native query, which partition it holds; from then on nodes are listed, replies are
sorted and bytes are counted by partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlab.errors import RunError

POLL_SECONDS = 0.05

Reply = Callable[[int, Message], None]  # partition, its reply


def roster(grid: Grid, clients: int, timeout: float) -> dict[int, int]:
    """Ask every node for its partition until partitions 0 .. clients - 1 are all there.

    Returns
    -------
    dict
        Partition to node id, in the order of partitions.

    Raises
    ------
    RunError
        When fewer than ``clients`` are connected after ``timeout`` seconds, or two nodes hold one partition.
    """
    known: dict[int, int] = {}  # node id -> partition
    deadline = time.monotonic() + timeout
    while True:
        fresh = [node for node in grid.get_node_ids() if node not in known]
        queries = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in fresh]
        for reply in _collect(grid, queries, max(0.0, deadline - time.monotonic())):
            if not reply.has_error():
                known[reply.metadata.src_node_id] = _partition_of(reply)
        partitions = {partition: node for node, partition in known.items() if partition < clients}
        doubled = [partition for partition in partitions if list(known.values()).count(partition) > 1]
        if doubled:
            raise RunError(
                f"two clients both say that they hold partition {doubled[0]}; give each its own partition-id"
            )
        if len(partitions) == clients:
            return dict(sorted(partitions.items()))
        if time.monotonic() > deadline:
            missing = sorted(set(range(clients)) - set(partitions))
            raise RunError(
                f"{len(partitions)} of {clients} clients connected within {timeout:g} s; missing partitions: "
                f"{', '.join(map(str, missing))}. Start them, or ask for fewer with clients=N"
            )
        time.sleep(POLL_SECONDS)


def _partition_of(reply: Message) -> int:
    identity = reply.content["identity"]
    assert isinstance(identity, ConfigRecord)
    partition = identity["partition"]
    assert isinstance(partition, int)
    return partition


def _collect(grid: Grid, messages: Iterable[Message], patience: float) -> Iterable[Message]:
    """Send messages and yield their replies as they come, until all are there or none came for ``patience`` seconds.

    The clock starts anew at each reply: where clients work one after another, the last is not late for the first.
    """
    waiting = set(grid.push_messages(messages))
    deadline = time.monotonic() + patience
    while waiting:
        replies = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in replies}
        yield from replies
        if replies:
            deadline = time.monotonic() + patience
        elif time.monotonic() > deadline:
            return
        else:
            time.sleep(POLL_SECONDS)


@dataclass
class Failure:
    """Why a client gave no usable reply."""

    partition: int
    reason: str


@dataclass
class Traffic:
    """What one phase moved: serialised bytes of messages' contents by partition, and the clients that failed."""

    down: dict[int, int] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


class RosterGrid(Grid):
    """A grid seen by partition: same nodes, same order, same bits on every engine.

    Parameters
    ----------
    grid
        What carries the messages.
    partitions
        Partition to node id, from :func:`roster`.
    min_clients
        Fewest valid replies to one call of :meth:`send_and_receive`.
    on_reply
        Called with each valid reply as it arrives.
    """

    def __init__(
        self,
        grid: Grid,
        partitions: Mapping[int, int],
        *,
        names: Mapping[int, str],
        min_clients: int,
        on_reply: Reply = lambda partition, reply: None,
    ) -> None:
        self.grid, self.names, self.min_clients, self.on_reply = grid, names, min_clients, on_reply
        self.nodes = dict(partitions)
        self.partition_of = {node: partition for partition, node in partitions.items()}
        self.traffic = Traffic()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Valid replies in the order of partitions; failures are recorded in :attr:`traffic`.

        Raises
        ------
        RunError
            When fewer than ``min_clients`` (or than were asked, if that is less) gave a valid reply.
        """
        messages = list(messages)
        self.traffic = Traffic()
        partitions = [self.partition_of[message.metadata.dst_node_id] for message in messages]
        for partition, message in zip(partitions, messages, strict=True):
            self.traffic.down[partition] = recorddict_to_proto(message.content).ByteSize()
        patience = timeout if timeout is not None else float("inf")
        replies: dict[int, Message] = {}
        for reply in _collect(self.grid, messages, patience):
            partition = self.partition_of[reply.metadata.src_node_id]
            if reply.has_error():
                self.traffic.failures.append(Failure(partition, reply.error.reason or "no reason given"))
                continue
            self.traffic.up[partition] = recorddict_to_proto(reply.content).ByteSize()
            replies[partition] = reply
            self.on_reply(partition, reply)
        heard = set(replies) | {failure.partition for failure in self.traffic.failures}
        for partition in sorted(set(partitions) - heard):
            self.traffic.failures.append(Failure(partition, f"no reply within {timeout:g} s"))
        self.traffic.failures.sort(key=lambda failure: failure.partition)
        if len(replies) < min(self.min_clients, len(messages)):
            raise RunError(self._complaint(len(replies), len(messages)))
        return [replies[partition] for partition in sorted(replies)]

    def _complaint(self, valid: int, asked: int) -> str:
        failed = self.traffic.failures
        names = ", ".join(f"{failure.partition} ({self.names[failure.partition]})" for failure in failed)
        wanted = min(self.min_clients, asked)
        what = "all clients failed" if not valid else f"{len(failed)} of {asked} clients failed"
        return (
            f"{what}: partition {names}; the run needs {wanted} valid replies (knob min_clients). "
            f"First failure, of partition {failed[0].partition}:\n{failed[0].reason}"
        )

    def get_node_ids(self) -> list[int]:
        """Nodes of the roster by partition; one that has gone is still asked, and counts as failed."""
        return list(self.nodes.values())

    # --- the rest is the grid below, unchanged ---

    def set_run(self, run: Run) -> None:
        """Set the run of the grid below."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the grid below."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of the grid below."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push through the grid below."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull from the grid below."""
        return self.grid.pull_messages(message_ids)
