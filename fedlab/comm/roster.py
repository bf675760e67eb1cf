"""Connected nodes by partition: nodes join, leave and return, and each is asked once for its partition.

Flower's node ids are random. A node is asked by a Flower query for its partition, and is known by that from then on.
No call waits for a node that does not answer, so a dead node cannot block the others.

**Assignment of partitions.** Where SuperNodes authenticate, ``owners`` names the client that each key was registered
for, and a node that claims another one is rejected. Without authentication the first node of a partition keeps it while
it answers; a second one takes over only when the first no longer does (a client that was killed comes back as a new
node long before Flower notices that the old one is gone).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fedlab.comm.event_rate import EventRate
from fedlab.comm.foreign_text import clean_name, clean_reason
from fedlab.errors import RunError, plural

POLL_SECONDS = 0.05
RETRY_SECONDS = 30.0  # after which a rejected node is asked again: its owner may have corrected its settings
CLAIM_TIMEOUT = 20.0  # seconds in which the node of a partition must answer when another node claims it
SERVER = "server"  # name of the record that tells a node the server's version and the digest of its configuration
REJECTED_NODE = "refusal"  # name of the record that tells a node why it is rejected
GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)

OnEvent = Callable[..., None]  # kind of event, its fields as keywords


@dataclass(frozen=True)
class Claim:
    """Claim of a second node to a partition, pending until the first node answers or times out."""

    node: int
    query_id: str  # id of the query that was sent to the first node
    deadline: float  # time.monotonic() at which the claim succeeds


class Roster:
    """The nodes of a federation by partition.

    Parameters
    ----------
    grid
        Flower's grid, which carries the messages.
    names
        Partition to the client's name; a node of another partition is ignored.
    owners
        Node id to the name that its key is registered for; None where nodes do not authenticate.
    greeting
        Content of the question for a node's partition: what the server wants clients to know first.
    on_event
        Called with the kind of event (``joined``, ``left``, ``refused``, ``connected``) and its fields.

    Attributes
    ----------
    present
        Partition to node id of the clients that are connected now.
    partition_of
        Node id to partition of every node that was ever accepted.
    """

    def __init__(
        self,
        grid: Grid,
        names: Mapping[int, str],
        owners: Mapping[int, str] | None = None,
        on_event: OnEvent = lambda kind, **fields: None,
        greeting: RecordDict | None = None,
    ) -> None:
        self.grid, self.names, self.owners = grid, dict(names), owners
        self._on_event, self._rate = on_event, EventRate()
        self.greeting = greeting or RecordDict()
        self.present: dict[int, int] = {}
        self.partition_of: dict[int, int] = {}
        self._asked: dict[str, int] = {}  # message id -> node that has not answered yet
        self._rejected: dict[int, tuple[float, str]] = {}  # node -> time, reason
        self._claims: dict[int, Claim] = {}  # partition -> pending claim
        self._left_out: dict[int, str] = {}  # partition -> why its client is asked no more in this run
        self._ignored: set[int] = set()  # nodes of partitions that this run does not have

    def poll(self) -> None:
        """Update from the nodes that joined, left and answered; return at once."""
        if known := getattr(self.grid, "partitions", None):  # clients of this process: nobody has to be asked
            if not self.present:
                self.partition_of = {node: partition for node, partition in known.items() if partition in self.names}
                self.present = {partition: node for node, partition in self.partition_of.items()}
            return
        connected = set(self.grid.get_node_ids())
        for partition, node in list(self.present.items()):
            if node not in connected:
                del self.present[partition]
                self._report("left", partition, client=self.names[partition], partition=partition)
        for node in connected & self.partition_of.keys():  # also one that was away
            if (partition := self.partition_of[node]) not in self.present:
                self._accept(node, partition)
        for node in self._rejected.keys() - connected:  # its owner may come back with other settings
            self._rejected[node] = (float("-inf"), self._rejected[node][1])
        now = time.monotonic()
        retry = {node for node, (when, _) in self._rejected.items() if now > when + RETRY_SECONDS}
        known = {*self.partition_of, *self._asked.values(), *self._ignored, *(self._rejected.keys() - retry)}
        for node in sorted(connected - known - {claim.node for claim in self._claims.values()}):
            self._asked[self._query(node, self.greeting)] = node
        for reply in self._answers():
            asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None and reply.metadata.src_node_id in (asked, SUPERLINK_NODE_ID):
                self._handle_identity(asked, reply)
        self._resolve_claims(now)

    def wait(self, wanted: Iterable[int], enough: int, timeout: float) -> None:
        """Poll until all partitions ``wanted`` are present; after ``timeout`` seconds ``enough`` of them suffice.

        Raises
        ------
        RunError
            When fewer are connected by then; the message names missing partitions and rejected nodes.
        """
        wanted, seen, most, deadline = set(wanted), -1, -1, time.monotonic() + timeout
        while True:
            self.poll()
            connected = self.present.keys() & wanted
            if len(connected) != seen:
                seen = len(connected)
                names = [self.names[partition] for partition in sorted(connected)]
                report = self._on_event if seen > most else partial(self._report, cause="connected")
                most = max(most, seen)
                report("connected", connected=seen, clients=len(wanted), names=names)
            if connected == wanted:
                return
            if time.monotonic() > deadline:
                if len(connected) >= max(enough, 1):
                    return
                raise RunError(self._failure_message(wanted, timeout))
            time.sleep(POLL_SECONDS)

    def leave_out(self, partition: int, reason: str) -> None:
        """Report to a client that it is asked no more in this run, and why."""
        self._left_out[partition] = reason
        if (node := self.present.get(partition)) is not None:
            simulated = getattr(self.grid, "partitions", None)
            self._reject(node, reason, report_to_node=not simulated)

    def _query(self, node: int, content: RecordDict | None = None) -> str:
        message = Message(content or RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)
        (message_id,) = self.grid.push_messages([message])
        return message_id

    def _answers(self) -> list[Message]:
        return list(self.grid.pull_messages(self._asked)) if self._asked else []

    def _handle_identity(self, node: int, reply: Message) -> None:
        """Accept a node, reject it, or record its claim to a partition that another node has."""
        if reply.has_error():
            if reply.error.code not in GONE:  # one that has gone is asked again when it is back
                self._reject(node, clean_reason(reply.error.reason), report_to_node=False)
            return
        try:
            partition, name = _identity(reply)
        except (KeyError, AssertionError, ValueError, AttributeError, TypeError):
            self._reject(node, "it did not say which partition it holds")
            return
        owner = self.owners.get(node) if self.owners is not None else None
        claimed = {name or self.names.get(partition), self.names.get(partition, name)}
        if self.owners is not None and claimed != {owner}:
            registered = f"its key is registered for {owner!r}" if owner else "its key is not registered"
            who = " and ".join(sorted(repr(one) for one in claimed))
            self._reject(node, f"it claims partition {partition} ({who}), but {registered}")
        elif partition in self._left_out:
            self._reject(node, self._left_out[partition])
        elif partition not in self.names:
            self._ignored.add(node)  # more clients than asked for
        elif (first := self.present.get(partition)) is None:
            self._rejected.pop(node, None)
            self.partition_of[node] = partition
            self._accept(node, partition)
        elif first != node and partition not in self._claims:
            self._claims[partition] = Claim(node, self._query(first), time.monotonic() + CLAIM_TIMEOUT)

    def _resolve_claims(self, now: float) -> None:
        """Decide between two nodes of one partition: the first keeps it if it still answers."""
        for partition, claim in list(self._claims.items()):
            answers = list(self.grid.pull_messages([claim.query_id]))
            alive = any(not answer.has_error() for answer in answers)
            if alive:
                self._reject(
                    claim.node,
                    f"two clients both say that they hold partition {partition} ({self.names[partition]}), and the "
                    "first still answers; give each its own",
                )
            elif answers or now > claim.deadline or partition not in self.present:
                self.partition_of.pop(self.present.pop(partition, -1), None)
                self._rejected.pop(claim.node, None)
                self.partition_of[claim.node] = partition
                self._accept(claim.node, partition)
            else:
                continue
            del self._claims[partition]

    def _accept(self, node: int, partition: int) -> None:
        self.present[partition] = node
        self._report("joined", partition, client=self.names[partition], partition=partition)

    def _reject(self, node: int, reason: str, report_to_node: bool = True) -> None:
        """Report a rejection as an event and, unless the reason is the node's own, to the node; each reason once."""
        before = self._rejected.get(node, (0.0, ""))[1]
        if before != reason:
            self._report("refused", self._name(node), client=self._name(node), reason=reason)
        if before != reason and report_to_node:
            self._query(node, RecordDict({REJECTED_NODE: ConfigRecord({"reason": reason})}))
        self._rejected[node] = time.monotonic(), reason

    def _report(self, kind: str, cause: int | str, **fields: object) -> None:
        """Pass on an event, unless its cause had too many of them; the next one says how many were omitted."""
        if (omitted := self._rate.count(cause)) is not None:
            self._on_event(kind, **fields, **({"omitted": omitted} if omitted else {}))

    def _name(self, node: int) -> str:
        """Return the client that a node's key is registered for, else the node's id."""
        return (self.owners or {}).get(node) or f"node {node}"

    def _failure_message(self, wanted: set[int], timeout: float) -> str:
        missing = sorted(wanted - self.present.keys())
        names = ", ".join(f"{partition} ({self.names[partition]})" for partition in missing)
        refused = "".join(f"; {self._name(node)} was refused: {why}" for node, (_, why) in self._rejected.items())
        return (
            f"{len(wanted) - len(missing)} of {plural(len(wanted), 'client')} connected within {timeout:g} s; missing "
            f"partitions: {names}{refused}. Start them, or ask for fewer with data.num_clients=N"
        )


def _identity(reply: Message) -> tuple[int, str]:
    """Return partition and name from a node's answer; the name is empty where the node was only given a number."""
    identity = reply.content["identity"]
    assert isinstance(identity, ConfigRecord)
    partition, name = identity["partition"], identity.get("name", "")
    assert isinstance(partition, int) and not isinstance(partition, bool) and isinstance(name, str)
    return partition, clean_name(name)
