"""Who is connected, by partition: nodes come, go and come back, and each says once what it holds.

Flower's node ids are random. A node is asked by a native query which partition it holds, and from then on is known by
that. Nothing here waits for a node that does not answer, so a dead one cannot hold back the others.

**Whose partition it is.** Where SuperNodes authenticate, ``owners`` says which client each key was registered for, and
a node that claims another one is refused. Without authentication the first to hold a partition keeps it while it
answers; a second one takes over only when the first no longer does (a client that was killed comes back as a new node
long before Flower notices that the old one is gone).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedlab.errors import RunError

POLL_SECONDS = 0.05
ASK_AGAIN = 30.0  # seconds after which a refused node is asked again: its owner may have mended it
RIVAL_PATIENCE = 20.0  # seconds that the holder of a partition has to answer when another node claims it
REFUSAL = "refusal"  # record of a query that tells a node why it is refused
GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)

Tell = Callable[..., None]  # kind of event, its fields


def silent(kind: str, **fields: object) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Claim:
    """A second node for a partition that has a holder, waiting for the holder to answer or not."""

    node: int
    question: str  # id of the query that the holder was sent
    until: float


class Roster:
    """The nodes of a federation by partition.

    Parameters
    ----------
    grid
        What carries the messages.
    names
        Partition to the client's name; a node that holds another partition is left aside.
    owners
        Node id to the name that its key is registered for; None where nodes do not authenticate.
    tell
        Called with ``joined``, ``left`` and ``refused`` and who and why.

    Attributes
    ----------
    present
        Partition to node id, of the clients that are connected now.
    partition_of
        Node id to partition, of every node that was ever accepted.
    """

    def __init__(
        self, grid: Grid, names: Mapping[int, str], owners: Mapping[int, str] | None = None, tell: Tell = silent
    ) -> None:
        self.grid, self.names, self.owners, self.tell = grid, dict(names), owners, tell
        self.present: dict[int, int] = {}
        self.partition_of: dict[int, int] = {}
        self._asked: dict[str, int] = {}  # message id -> node that has not answered yet
        self._refused: dict[int, tuple[float, str]] = {}  # node -> when, why
        self._claims: dict[int, Claim] = {}  # partition -> who else wants it
        self._aside: set[int] = set()  # nodes that hold a partition which is none of this run's

    def look(self) -> None:
        """Take notice of who came, went and answered; returns at once."""
        connected = set(self.grid.get_node_ids())
        for partition, node in list(self.present.items()):
            if node not in connected:
                del self.present[partition]
                self.tell("left", client=self.names[partition], partition=partition)
        for node in connected & self.partition_of.keys():  # also one that was away
            if (partition := self.partition_of[node]) not in self.present:
                self._accept(node, partition)
        now = time.monotonic()
        again = {node for node, (when, _) in self._refused.items() if now > when + ASK_AGAIN}
        spoken = {*self.partition_of, *self._asked.values(), *self._aside, *(self._refused.keys() - again)}
        for node in sorted(connected - spoken - {claim.node for claim in self._claims.values()}):
            self._asked[self._query(node)] = node
        for reply in self._answers():
            self._judge(self._asked.pop(reply.metadata.reply_to_message_id), reply)
        self._settle(now)

    def wait(self, wanted: Iterable[int], enough: int, timeout: float) -> None:
        """Look until all partitions ``wanted`` are present; after ``timeout`` seconds ``enough`` of them will do.

        Raises
        ------
        RunError
            When fewer are connected by then, with what is missing and who was refused.
        """
        wanted, seen, deadline = set(wanted), -1, time.monotonic() + timeout
        while True:
            self.look()
            here = self.present.keys() & wanted
            if len(here) != seen:
                seen = len(here)
                names = [self.names[partition] for partition in sorted(here)]
                self.tell("connected", connected=seen, clients=len(wanted), names=names)
            if here == wanted:
                return
            if time.monotonic() > deadline:
                if len(here) >= max(enough, 1):
                    return
                raise RunError(self._complaint(wanted, timeout))
            time.sleep(POLL_SECONDS)

    def _query(self, node: int, content: RecordDict | None = None) -> str:
        message = Message(content or RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)
        (message_id,) = self.grid.push_messages([message])
        return message_id

    def _answers(self) -> list[Message]:
        return list(self.grid.pull_messages(self._asked)) if self._asked else []

    def _judge(self, node: int, reply: Message) -> None:
        """Accept a node, refuse it, or wait for the holder of the partition that it claims."""
        if reply.has_error():
            if reply.error.code not in GONE:  # one that has gone is asked again when it is back
                self._refuse(node, reply.error.reason or "it could not say what it holds", say=False)
            return
        try:
            partition, name = _identity(reply)
        except (KeyError, AssertionError, ValueError):
            self._refuse(node, "it did not say which partition it holds")
            return
        owner = self.owners.get(node) if self.owners is not None else None
        if self.owners is not None and owner != (name or self.names.get(partition)):
            mine = f"its key is registered for {owner!r}" if owner else "its key is not registered"
            self._refuse(node, f"it claims partition {partition} ({name or self.names.get(partition)!r}), but {mine}")
        elif partition not in self.names:
            self._aside.add(node)  # more clients than asked for
        elif (holder := self.present.get(partition)) is None:
            self._refused.pop(node, None)
            self.partition_of[node] = partition
            self._accept(node, partition)
        elif holder != node and partition not in self._claims:
            self._claims[partition] = Claim(node, self._query(holder), time.monotonic() + RIVAL_PATIENCE)

    def _settle(self, now: float) -> None:
        """Decide between two nodes that claim one partition: whoever held it keeps it if it still answers."""
        for partition, claim in list(self._claims.items()):
            answers = list(self.grid.pull_messages([claim.question]))
            alive = any(not answer.has_error() for answer in answers)
            if alive:
                self._refuse(
                    claim.node,
                    f"two clients both say that they hold partition {partition} ({self.names[partition]}), and the "
                    "first still answers; give each its own",
                )
            elif answers or now > claim.until or partition not in self.present:
                self.partition_of.pop(self.present.pop(partition, -1), None)
                self._refused.pop(claim.node, None)
                self.partition_of[claim.node] = partition
                self._accept(claim.node, partition)
            else:
                continue
            del self._claims[partition]

    def _accept(self, node: int, partition: int) -> None:
        self.present[partition] = node
        self.tell("joined", client=self.names[partition], partition=partition)

    def _refuse(self, node: int, reason: str, say: bool = True) -> None:
        """Say why here and, unless it was the node's own reason, there; the same reason is told once."""
        before = self._refused.get(node, (0.0, ""))[1]
        if before != reason:
            self.tell("refused", client=f"node {node}", reason=reason)
        if before != reason and say:
            self._query(node, RecordDict({REFUSAL: ConfigRecord({"reason": reason})}))
        self._refused[node] = time.monotonic(), reason

    def _complaint(self, wanted: set[int], timeout: float) -> str:
        missing = sorted(wanted - self.present.keys())
        names = ", ".join(f"{partition} ({self.names[partition]})" for partition in missing)
        refused = "".join(f"; a node was refused: {reason}" for _, reason in self._refused.values())
        return (
            f"{len(wanted) - len(missing)} of {len(wanted)} clients connected within {timeout:g} s; missing "
            f"partitions: {names}{refused}. Start them, or ask for fewer with clients=N"
        )


def _identity(reply: Message) -> tuple[int, str]:
    """Partition and name that a node says it holds; the name is empty where it was only told a number."""
    identity = reply.content["identity"]
    assert isinstance(identity, ConfigRecord)
    partition, name = identity["partition"], identity.get("name", "")
    assert isinstance(partition, int) and not isinstance(partition, bool) and isinstance(name, str)
    return partition, name
