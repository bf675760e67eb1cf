"""Messages by partition: fixed order on every engine, bytes counted, failed clients and rejected updates named.

Flower's node ids are random and replies come in any order, so Flower alone gives as many results as there are orders.
Here nodes are listed, replies are sorted and bytes are counted by partition. A reply that a strategy may not use is
rejected here, so that no strategy averages it in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedlab.comm import compression
from fedlab.comm.foreign_text import clean_reason
from fedlab.comm.refusals import Refusals
from fedlab.comm.replies import (
    UNREADABLE,
    UNRESPONSIVE_KINDS,
    WINDOW,
    ClientFailure,
    PhaseStats,
    reply_batches,
)
from fedlab.comm.roster import GONE, Roster
from fedlab.comm.stacked_replies import message_bytes, stacked_content
from fedlab.comm.tensors import content_bytes
from fedlab.comm.wrapped_grid import WrappedGrid
from fedlab.errors import FedlabError, RunError, TooFewRepliesError, plural

OnReplies = Callable[[list[tuple[int, Message]]], None]  # partitions, each with its reply
OnWaiting = Callable[[list[int], float], None]  # partitions that have not answered, seconds that are left
Validate = Callable[[Message, Message], None]  # message, its reply; raises to reject the reply
MEGABYTE = 1_000_000
REJECTED_UPDATE = "refused"  # name of the record that tells a client which of its updates was rejected, and why


def no_validation(message: Message, reply: Message) -> None:
    """Accept every reply."""


class PartitionGrid(WrappedGrid[Grid]):
    """A Flower grid addressed by partition: same nodes, same order, same bits on every engine.

    Parameters
    ----------
    roster
        The nodes that are connected.
    min_clients
        Fewest clients that must be connected at the start of a phase, and left without a failure at its end.
    join_rounds
        Partition to the first round in which a late joiner takes part; all others take part from the start.
    round_timeout
        Seconds from the start of a phase after which no reply is waited for; 0: no limit.
    max_reply_mb
        Largest reply in megabytes.
    wire_format
        Encoding of floats, see :mod:`fedlab.comm.compression`.
    on_replies
        Called with the valid replies that have just arrived, in that order.
    on_waiting
        Called with the partitions that are waited for, when no reply has come for a while.

    Attributes
    ----------
    expected
        Partitions that take part in the current round.
    cohort
        Partitions of them that take part in the current phase; None: all.
    unresponsive
        Partitions that did not answer in the current round: they are not asked again before the next.
    refusals
        Replies that were refused, and clients that are left out for that.
    stats
        Bytes and failures of the last phase.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        min_clients: int,
        join_rounds: Mapping[int, int] | None = None,
        round_timeout: float = 0.0,
        max_reply_mb: float = float("inf"),
        wire_format: str = compression.FLOAT32,
        on_replies: OnReplies = lambda replies: None,
        on_waiting: OnWaiting = lambda partitions, left: None,
    ) -> None:
        super().__init__(roster.grid)
        self.roster, self.names = roster, roster.names
        self.min_clients, self.join_rounds = min_clients, dict(join_rounds or {})
        self.round_timeout, self.max_reply_mb, self.wire_format = round_timeout, max_reply_mb, wire_format
        self.on_replies, self.on_waiting = on_replies, on_waiting
        self.expected = set(self.names)
        self.cohort: Collection[int] | None = None
        self.unresponsive: set[int] = set()
        self.round = 0
        self.refusals = Refusals()
        self.stats = PhaseStats()

    @property
    def partition_of(self) -> Mapping[int, int]:
        """Node id to partition."""
        return self.roster.partition_of

    def wait_for_clients(self, server_round: int, timeout: float, named: Collection[int] | None = None) -> None:
        """Wait before the first round of a process until all expected clients are connected, or enough of them.

        Parameters
        ----------
        named
            Partitions of which alone some have to be connected, as those of a schedule; None: all that are expected.

        Raises
        ------
        RunError
            When fewer than are needed are connected after ``timeout`` seconds.
        """
        self._set_round(server_round)
        wanted = self._wanted(named)
        self.roster.wait(wanted, min(self.min_clients, len(wanted)), timeout)

    def start_round(
        self, server_round: int, timeout: float, enough: int | None = None, named: Collection[int] | None = None
    ) -> None:
        """Update who is connected; where too few are, wait for them as :meth:`wait_for_clients` does.

        Parameters
        ----------
        enough
            Number of clients that the round will ask, if that is fewer than all.
        named
            As in :meth:`wait_for_clients`.

        Raises
        ------
        RunError
            When fewer than are needed are connected after ``timeout`` seconds.
        """
        self._set_round(server_round)
        self.roster.poll()
        wanted = self._wanted(named)
        needed = min(self.min_clients, len(wanted) if enough is None else min(enough, len(wanted)))
        if len(self.nodes.keys() & wanted) < needed:
            self.roster.wait(wanted - self.refusals.left_out.keys(), needed, timeout)
        if len(self.nodes.keys() & wanted) < needed and self.refusals.left_out:
            raise RunError(self._left_out_message(needed))

    def _wanted(self, named: Collection[int] | None) -> set[int]:
        return self.expected if named is None else self.expected & set(named)

    def _set_round(self, server_round: int) -> None:
        self.round, self.unresponsive, self.cohort = server_round, set(), None
        self.expected = {partition for partition in self.names if self.join_rounds.get(partition, 0) <= server_round}

    def restore(self, refusals: Mapping[str, Any]) -> None:
        """Continue with the refusals of an earlier process of the run."""
        self.refusals.restore(refusals)
        for partition, reason in self.refusals.left_out.items():
            self.roster.leave_out(partition, reason)

    @property
    def needed(self) -> int:
        """Fewest clients with which a phase is valid."""
        return min(self.min_clients, len(self.expected if self.cohort is None else self.cohort))

    @property
    def nodes(self) -> dict[int, int]:
        """Partition to node of the clients that take part, partitions ascending."""
        taking_part = self.expected if self.cohort is None else self.cohort
        present = self.roster.present
        return {
            partition: present[partition]
            for partition in sorted(taking_part)
            if partition in present and partition not in self.unresponsive and partition not in self.refusals.left_out
        }

    def missing(self) -> list[int]:
        """Return the partitions that are expected and not connected."""
        return sorted(self.expected - self.roster.present.keys())

    def select(self, cohort: Collection[int] | None) -> None:
        """Let only these partitions take part until the next call; None: all that are expected."""
        self.cohort = cohort

    def stream(
        self,
        messages: Iterable[Message],
        *,
        idle_timeout: float,
        check: Validate = no_validation,
    ) -> Iterator[Message]:
        """Send messages and yield the valid replies in the order of partitions, as :meth:`batches` does in lists."""
        return chain.from_iterable(self.batches(messages, idle_timeout=idle_timeout, check=check))

    def batches(
        self,
        messages: Iterable[Message],
        *,
        idle_timeout: float,
        check: Validate = no_validation,
    ) -> Iterator[list[Message]]:
        """Send messages and yield the valid replies in the order of partitions; record failures in :attr:`stats`.

        A reply is yielded as soon as those of all lower partitions have come or failed, so few are held at a time. A
        list has those that one pull made ready, and may be empty.

        Parameters
        ----------
        messages
            One for each client.
        idle_timeout
            Seconds without any reply after which the rest are given up.
        check
            Called with each message and its reply; whatever it raises rejects the reply.

        Raises
        ------
        TooFewRepliesError
            At the end, when too few clients are left: of those present, fewer than ``min_clients`` did not fail.
        """
        self.stats = PhaseStats()
        sent = self._encoded(sorted(messages, key=self._asked))
        order = deque(map(self._asked, sent))
        present, asked = self.nodes.keys() | set(order), bool(order)
        ready: dict[int, Message | None] = {}  # answered or failed, and not yielded yet
        for batch in reply_batches(
            self.grid,
            sent,
            idle_timeout,
            self.round_timeout or float("inf"),
            getattr(self.grid, "window", WINDOW),
            lambda waiting, left: self.on_waiting([self._asked(one) for one in waiting], left),
        ):
            found: list[tuple[int, Message]] = []
            for message, reply in batch:
                partition = self._asked(message)
                if reply is None:
                    waited = f"{self.round_timeout:g} s" if self.round_timeout else f"{idle_timeout:g} s of silence"
                    self._fail(partition, f"no reply within {waited}", "late")
                ready[partition] = answer = self._valid(partition, message, reply, check) if reply is not None else None
                if answer is not None:
                    found.append((partition, answer))
            self.on_replies(found)
            valid: list[Message] = []
            while order and order[0] in ready:
                if (reply := ready.pop(order.popleft())) is not None:
                    valid.append(reply)
            yield valid
        self.stats.failures.sort(key=lambda failure: failure.partition)
        if asked and len(present) - len(self.stats.failures) < self.needed:
            raise self._too_few(len(present), len(sent))

    def send_and_validate(
        self, messages: Iterable[Message], *, idle_timeout: float, check: Validate = no_validation
    ) -> list[Message]:
        """Return all that :meth:`stream` yields."""
        return list(self.stream(messages, idle_timeout=idle_timeout, check=check))

    def _valid(self, partition: int, message: Message, reply: Message, check: Validate) -> Message | None:
        """Return a partition's reply, decoded and checked; None, and a failure recorded, when it cannot be used."""
        if reply.has_error():
            code, reason = reply.error.code, clean_reason(reply.error.reason)
            if code == UNREADABLE:
                self._reject(message, reason)
            else:
                self._fail(partition, reason, "gone" if code in GONE else "failed")
            return None
        try:
            self.stats.up[partition] = size = message_bytes(reply)
            self._decode_and_check(reply, message, size, check)
        except FedlabError as error:
            self._reject(message, str(error))
        except Exception as error:  # whatever a client sends, it is the client's failure
            self._reject(message, f"{type(error).__name__}: {error}")
        else:
            self.refusals.accept(partition, message.metadata.message_type)
            return reply
        return None

    def _asked(self, message: Message) -> int:
        """Return the partition that a message was sent to."""
        return self.partition_of[message.metadata.dst_node_id]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the valid replies: Flower's interface to :meth:`send_and_validate`."""
        return self.send_and_validate(messages, idle_timeout=timeout if timeout is not None else float("inf"))

    def _encoded(self, messages: list[Message]) -> list[Message]:
        """Return the messages as they cross the wire, rejections attached; count their bytes. Contents are shared."""
        contents: dict[int, tuple[RecordDict, int]] = {}
        sent = []
        for message in messages:
            if id(message.content) not in contents:
                content = compression.encode(message.content, self.wire_format)
                contents[id(message.content)] = content, content_bytes(content)
            content, size = contents[id(message.content)]
            node = message.metadata.dst_node_id
            if rejection := self.refusals.unreported.pop(self.partition_of[node], None):
                content = RecordDict({**content, REJECTED_UPDATE: ConfigRecord({**rejection})})
                size = content_bytes(content)
            self.stats.down[self.partition_of[node]] = size
            sent.append(message if content is message.content else _with_content(message, content))
        return sent

    def _decode_and_check(self, reply: Message, message: Message, size: int, check: Validate) -> None:
        """Decode a reply of so many bytes in place; raise when it cannot be used."""
        if reply.metadata.src_node_id != message.metadata.dst_node_id:
            raise RunError("it came in the name of another node than the one that was asked")
        if size > self.max_reply_mb * MEGABYTE:
            raise RunError(
                f"it has {size / MEGABYTE:.1f} MB, and option comm.max_reply_mb allows {self.max_reply_mb:g} MB"
            )
        if stacked_content(reply) is None:
            reply.content = compression.decode(reply.content)
        check(message, reply)

    def _reject(self, message: Message, reason: str) -> None:
        """Record a refused reply; leave its client out when that was one too many."""
        partition, reason = self._asked(message), clean_reason(reason)
        self._fail(partition, f"its reply was refused: {reason}", "refused")
        if self.refusals.add(partition, message.metadata.message_type, self.round, reason):
            self.roster.leave_out(partition, self.refusals.left_out[partition])

    def _fail(self, partition: int, reason: str, kind: str) -> None:
        self.stats.failures.append(ClientFailure(partition, reason, kind))
        if kind in UNRESPONSIVE_KINDS:
            self.unresponsive.add(partition)

    def _too_few(self, present: int, asked: int) -> TooFewRepliesError:
        failed = self.stats.failures
        names = ", ".join(f"{failure.partition} ({self.names[failure.partition]})" for failure in failed)
        what = "all clients failed" if len(failed) == present else f"{len(failed)} of {present} clients failed"
        what = f"{what}: partition {names}"
        return TooFewRepliesError(
            f"{what}; the run needs {self.needed} valid {'reply' if self.needed == 1 else 'replies'} "
            "(option min_clients); `fedlab resume` goes on from the last round. "
            f"First failure, of partition {failed[0].partition}:\n{failed[0].reason}",
            f"{what} ({', '.join(dict.fromkeys(failure.kind for failure in failed))})",
            asked - len(failed),
        )

    def _left_out_message(self, needed: int) -> str:
        left_out = sorted(self.refusals.left_out.items())
        out = "; ".join(f"{partition} ({self.names[partition]}): {why}" for partition, why in left_out)
        return (
            f"{plural(len(self.nodes), 'client')} left, and the run needs {needed} (option min_clients). "
            f"Left out: {out}"
        )

    def get_node_ids(self) -> list[int]:
        """Return the nodes of the clients that take part, by partition."""
        return list(self.nodes.values())

    # --- delegated to the wrapped grid unchanged ---

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages through the wrapped grid."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies from the wrapped grid."""
        return self.grid.pull_messages(message_ids)


def _with_content(message: Message, content: RecordDict) -> Message:
    """Return a message to the same node with another content."""
    head = message.metadata
    return Message(
        content, dst_node_id=head.dst_node_id, message_type=head.message_type, group_id=head.group_id, ttl=head.ttl
    )
