"""Messages by partition: one order on every engine, bytes counted, and failures and bad updates named.

Flower's node ids are random and replies come in any order, so Flower alone gives as many results as there are orders.
Here nodes are listed, replies are sorted and bytes are counted by partition. A reply that a strategy may not use is
refused here, so no strategy ever averages it in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlab.comm import compression
from fedlab.comm.roster import GONE, POLL_SECONDS, Roster
from fedlab.errors import FedlabError, RunError

Reply = Callable[[int, Message], None]  # partition, its reply
MEGABYTE = 1_000_000
SILENT = ("late", "gone")  # kinds of failure after which a second question would wait in vain
REFUSED = "refused"  # record of a message that tells a client which of its updates was refused, and why


def accept(message: Message, reply: Message) -> None:
    """Check nothing."""


@dataclass
class Failure:
    """Why a client gave no usable reply.

    ``kind`` is ``failed`` (its app raised), ``refused`` (a bad update), ``late`` (no reply in time) or ``gone`` (Flower
    lost the node).
    """

    partition: int
    reason: str
    kind: str = "failed"


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
    roster
        Who is connected.
    min_clients
        Fewest clients that must be connected at the start of a phase, and left without a failure at its end.
    arrivals
        Partition to the first round in which it takes part; those not named take part from the start.
    deadline
        Seconds from the start of a phase after which no reply is waited for; 0: none.
    reply_limit
        Largest reply in megabytes.
    wire_format
        How floats cross the wire, see :mod:`fedlab.comm.compression`.
    on_reply
        Called with each valid reply as it arrives.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        min_clients: int,
        arrivals: Mapping[int, int] | None = None,
        deadline: float = 0.0,
        reply_limit: float = float("inf"),
        wire_format: str = compression.FULL,
        on_reply: Reply = lambda partition, reply: None,
    ) -> None:
        self.roster, self.grid, self.names = roster, roster.grid, roster.names
        self.min_clients, self.arrivals = min_clients, dict(arrivals or {})
        self.deadline, self.reply_limit, self.wire_format = deadline, reply_limit, wire_format
        self.on_reply = on_reply
        self.due = set(self.names)
        self.out: set[int] = set()  # partitions that did not answer in this round: not asked again before the next
        self.round = 0
        self.refused: dict[int, dict[str, int | str]] = {}  # partition -> which update, why; told in its next message
        self.traffic = Traffic()

    @property
    def partition_of(self) -> Mapping[int, int]:
        """Node id to partition."""
        return self.roster.partition_of

    def gather(self, server_round: int, timeout: float) -> None:
        """Before the first round of a process: wait until all that are due are there, or as many as are needed.

        Raises
        ------
        RunError
            When fewer than are needed are connected after ``timeout`` seconds.
        """
        self._turn_to(server_round)
        self.roster.wait(self.due, self.needed, timeout)

    def begin(self, server_round: int, timeout: float) -> None:
        """See who is there for a round; if too few are, wait for them to come back, as :meth:`gather` does."""
        self._turn_to(server_round)
        self.roster.look()
        if len(self.nodes) < self.needed:
            self.gather(server_round, timeout)

    def _turn_to(self, server_round: int) -> None:
        self.round, self.out = server_round, set()
        self.due = {partition for partition in self.names if self.arrivals.get(partition, 0) <= server_round}

    @property
    def needed(self) -> int:
        """Fewest clients with which a phase is valid."""
        return min(self.min_clients, len(self.due))

    @property
    def nodes(self) -> dict[int, int]:
        """Partition to node, in the order of partitions, of the clients that take part."""
        taking_part = self.due - self.out
        return {partition: node for partition, node in sorted(self.roster.present.items()) if partition in taking_part}

    def absent(self) -> list[int]:
        """Partitions that are due and not connected."""
        return sorted(self.due - self.roster.present.keys())

    def exchange(
        self,
        messages: Iterable[Message],
        *,
        patience: float,
        check: Callable[[Message, Message], None] = accept,
    ) -> list[Message]:
        """Valid replies in the order of partitions; failures are recorded in :attr:`traffic`.

        Parameters
        ----------
        patience
            Seconds without any reply after which the rest are given up.
        check
            Called with each message and its reply; whatever it raises refuses the reply.

        Raises
        ------
        RunError
            When too few clients are left: of those present, fewer than ``min_clients`` did not fail.
        """
        self.traffic = Traffic()
        sent = self._encoded(list(messages))
        asked = {self.partition_of[message.metadata.dst_node_id] for message in sent}
        present = self.nodes.keys() | asked
        replies: dict[int, Message] = {}
        for message, reply in collect(self.grid, sent, patience, self.deadline or float("inf")):
            partition = self.partition_of[message.metadata.dst_node_id]
            if reply.has_error():
                kind = "gone" if reply.error.code in GONE else "failed"
                self._fail(partition, reply.error.reason or "no reason given", kind)
                continue
            try:
                self.traffic.up[partition] = recorddict_to_proto(reply.content).ByteSize()
                self._accept(reply, message, check)
            except FedlabError as error:
                self._refuse(partition, str(error))
            except Exception as error:  # whatever a client sends, it is the client's failure
                self._refuse(partition, f"{type(error).__name__}: {error}")
            else:
                replies[partition] = reply
                self.on_reply(partition, reply)
        heard = set(replies) | {failure.partition for failure in self.traffic.failures}
        for partition in sorted(asked - heard):
            waited = f"{self.deadline:g} s" if self.deadline else f"{patience:g} s of silence"
            self._fail(partition, f"no reply within {waited}", "late")
        self.traffic.failures.sort(key=lambda failure: failure.partition)
        if asked and len(present) - len(self.traffic.failures) < self.needed:
            raise RunError(self._complaint(len(present)))
        return [replies[partition] for partition in sorted(replies)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Flower's own question: :meth:`exchange` without a check of the replies."""
        return self.exchange(messages, patience=timeout if timeout is not None else float("inf"))

    def _encoded(self, messages: list[Message]) -> list[Message]:
        """The messages as they cross the wire, with what was refused, their bytes counted; many share one content."""
        contents: dict[int, tuple[RecordDict, int]] = {}
        sent = []
        for message in messages:
            if id(message.content) not in contents:
                content = compression.encode(message.content, self.wire_format)
                contents[id(message.content)] = content, recorddict_to_proto(content).ByteSize()
            content, size = contents[id(message.content)]
            node = message.metadata.dst_node_id
            if refused := self.refused.pop(self.partition_of[node], None):
                content = RecordDict({**content, REFUSED: ConfigRecord({**refused})})
                size = recorddict_to_proto(content).ByteSize()
            self.traffic.down[self.partition_of[node]] = size
            sent.append(
                Message(
                    content,
                    dst_node_id=node,
                    message_type=message.metadata.message_type,
                    group_id=message.metadata.group_id,
                    ttl=message.metadata.ttl,
                )
            )
        return sent

    def _accept(self, reply: Message, message: Message, check: Callable[[Message, Message], None]) -> None:
        """Decode a reply in place, or say why it cannot be used."""
        size = self.traffic.up[self.partition_of[reply.metadata.src_node_id]]
        if size > self.reply_limit * MEGABYTE:
            raise RunError(f"it has {size / MEGABYTE:.1f} MB, and option comm.max_reply_mb allows {self.reply_limit:g} MB")
        reply.content = compression.decode(reply.content)
        check(message, reply)

    def _refuse(self, partition: int, reason: str) -> None:
        self._fail(partition, f"its reply was refused: {reason}", "refused")
        self.refused[partition] = {"round": self.round, "reason": reason}

    def _fail(self, partition: int, reason: str, kind: str) -> None:
        self.traffic.failures.append(Failure(partition, reason, kind))
        if kind in SILENT:
            self.out.add(partition)

    def _complaint(self, present: int) -> str:
        failed = self.traffic.failures
        names = ", ".join(f"{failure.partition} ({self.names[failure.partition]})" for failure in failed)
        what = "all clients failed" if len(failed) == present else f"{len(failed)} of {present} clients failed"
        return (
            f"{what}: partition {names}; the run needs {self.needed} valid replies (option min_clients); "
            "`fedlab resume` goes on from the last round. "
            f"First failure, of partition {failed[0].partition}:\n{failed[0].reason}"
        )

    def get_node_ids(self) -> list[int]:
        """Nodes of the clients that take part, by partition."""
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


def collect(
    grid: Grid, messages: Iterable[Message], patience: float, deadline: float = float("inf")
) -> Iterator[tuple[Message, Message]]:
    """Send messages and yield each with its reply, until all are there or time is up.

    Time is up ``deadline`` seconds after sending, or ``patience`` seconds after the last reply: where clients work one
    after another, the last is not late for the first. That a client is gone, Flower's server says in its own name.
    """
    sent = list(messages)
    numbers = list(grid.push_messages(sent))
    if len(numbers) != len(sent):
        raise RunError("Flower's server did not take the messages to the clients: they are too large for it")
    waiting = {number: message for number, message in zip(numbers, sent, strict=True) if number}  # None: not taken
    started = heard = time.monotonic()
    while waiting:
        replies = list(grid.pull_messages(waiting.keys()))
        for reply in replies:
            yield waiting.pop(reply.metadata.reply_to_message_id), reply
        now = time.monotonic()
        if replies:
            heard = now
        elif now > min(heard + patience, started + deadline):
            return
        else:
            time.sleep(POLL_SECONDS)
