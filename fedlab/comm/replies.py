"""Replies of one phase: sending messages and waiting for their replies, with the bytes and failures by partition."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedlab.comm.roster import POLL_SECONDS
from fedlab.errors import RunError

UNRESPONSIVE_KINDS = ("late", "gone")  # kinds of failure after which a client is not asked again in the round


@dataclass
class ClientFailure:
    """Reason why a client gave no usable reply.

    ``kind`` is ``failed`` (its app raised), ``refused`` (a bad update), ``late`` (no reply in time) or ``gone`` (Flower
    lost the node).
    """

    partition: int
    reason: str
    kind: str = "failed"


@dataclass
class PhaseStats:
    """Bytes of one phase by partition (serialized contents of messages, down and up), and the clients that failed."""

    down: dict[int, int] = field(default_factory=dict)
    up: dict[int, int] = field(default_factory=dict)
    failures: list[ClientFailure] = field(default_factory=list)


def stream_replies(
    grid: Grid, messages: Iterable[Message], idle_timeout: float, round_timeout: float = float("inf")
) -> Iterator[tuple[Message, Message]]:
    """Send messages and yield each with its reply, until all are answered or time is up.

    Time is up ``round_timeout`` seconds after sending, or ``idle_timeout`` seconds after the last reply: where clients
    work one after another, the last is not late because of the first. The reply that a client is gone comes from
    Flower's server, not from the client's node.

    Raises
    ------
    RunError
        When Flower's server does not take the messages.
    """
    sent = list(messages)
    message_ids = list(grid.push_messages(sent))
    if len(message_ids) != len(sent):
        raise RunError("Flower's server did not take the messages to the clients: they are too large for it")
    waiting = {key: message for key, message in zip(message_ids, sent, strict=True) if key}  # None: not taken
    started = last_reply = time.monotonic()
    while waiting:
        replies = list(grid.pull_messages(waiting.keys()))
        for reply in replies:
            yield waiting.pop(reply.metadata.reply_to_message_id), reply
        now = time.monotonic()
        if replies:
            last_reply = now
        elif now > min(last_reply + idle_timeout, started + round_timeout):
            return
        else:
            time.sleep(POLL_SECONDS)
