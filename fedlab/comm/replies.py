"""Replies of one phase: sending messages and waiting for their replies, with the bytes and failures by partition."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from flwr.app import Message
from flwr.serverapp import Grid

from fedlab.comm.roster import POLL_SECONDS
from fedlab.errors import RunError

WINDOW = 32  # replies that are asked for, and so held, at a time
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
    grid: Grid,
    messages: Iterable[Message],
    idle_timeout: float,
    round_timeout: float = float("inf"),
    window: int = WINDOW,
) -> Iterator[tuple[Message, Message | None]]:
    """Send messages and yield each with its reply as it comes, or with None where none came in time.

    Only the ``window`` messages from the oldest unanswered one on are asked for; later replies wait in Flower's server.
    So who puts replies into the order of their messages holds a window of them, however many clients there are.

    Time is up ``round_timeout`` seconds after sending, or ``idle_timeout`` seconds after the last reply: where clients
    work one after another, the last is not late because of the first. From then on only replies that are already there
    are taken. The reply that a client is gone comes from Flower's server, not from the client's node.

    Raises
    ------
    RunError
        When Flower's server does not take the messages.
    """
    sent = list(messages)
    message_ids = list(grid.push_messages(sent))
    if len(message_ids) != len(sent):
        raise RunError("Flower's server did not take the messages to the clients: they are too large for it")
    waiting = {key: (place, sent[place]) for place, key in enumerate(message_ids) if key}
    yield from ((message, None) for key, message in zip(message_ids, sent, strict=True) if not key)  # not taken
    started = last_reply = time.monotonic()
    while waiting:
        oldest = next(iter(waiting.values()))[0]
        asked = [key for key, (place, _) in islice(waiting.items(), window) if place < oldest + window]
        replies = list(grid.pull_messages(asked))
        for reply in replies:
            yield waiting.pop(reply.metadata.reply_to_message_id)[1], reply
        now = time.monotonic()
        if now > min(last_reply + idle_timeout, started + round_timeout):
            if not replies:
                yield from ((waiting.pop(key)[1], None) for key in asked)
        elif replies:
            last_reply = now
        else:
            time.sleep(POLL_SECONDS)
