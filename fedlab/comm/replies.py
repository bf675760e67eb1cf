"""Replies of one phase: sending messages and waiting for their replies, with the bytes and failures by partition."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

from fedlab.comm.roster import POLL_SECONDS
from fedlab.errors import RunError

WINDOW = 32  # replies that are asked for, and so held, at a time
SILENCE = 10.0  # seconds without any reply after which it is said who is waited for
UNREADABLE = 9001  # code of the error that a grid of ours returns in place of a reply that is no valid message
UNRESPONSIVE_KINDS = ("late", "gone")  # kinds of failure after which a client is not asked again in the round

OnSilence = Callable[[list[Message], float], None]  # messages without a reply, seconds that are left


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

    def add_bytes(self, other: PhaseStats) -> None:
        """Add the bytes of another attempt at the phase."""
        for own, more in ((self.down, other.down), (self.up, other.up)):
            for partition, size in more.items():
                own[partition] = own.get(partition, 0) + size


@runtime_checkable
class KeepsDeadlines(Protocol):
    """A grid whose pulls return by a deadline, and that can give up replies."""

    def pull_until(self, message_ids: Iterable[str], deadline: float) -> list[Message]:
        """Return replies to some of the messages, at ``deadline`` (``time.monotonic()``) in any case."""
        ...

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Give up the replies to these messages, and end the work on them where that can be done."""
        ...


def reply_batches(
    grid: Grid,
    messages: Iterable[Message],
    idle_timeout: float,
    round_timeout: float = float("inf"),
    window: int = WINDOW,
    on_silence: OnSilence = lambda waiting, left: None,
) -> Iterator[list[tuple[Message, Message | None]]]:
    """Send messages and yield each with its reply as it comes, or with None where none came in time: a list a pull.

    Only the ``window`` messages from the oldest unanswered one on are asked for; later replies wait in Flower's server.
    So who puts replies into the order of their messages holds a window of them, however many clients there are.

    Time is up ``round_timeout`` seconds after the start, or ``idle_timeout`` seconds after the last reply: where
    clients work one after another, the last is not late because of the first. From then on only replies that are
    already there are taken. The reply that a client is gone comes from Flower's server, not from the client's node.

    Parameters
    ----------
    on_silence
        Called with the messages that wait for a reply, and the seconds that are left, when none has come for
        ``SILENCE`` seconds or a third of the time; then again after twice as long, and so on.

    Raises
    ------
    RunError
        When Flower's server does not take the messages.
    """
    started = time.monotonic()
    sent = list(messages)
    message_ids = list(grid.push_messages(sent))
    if len(message_ids) != len(sent):
        raise RunError("Flower's server did not take the messages to the clients: they are too large for it")
    waiting = {key: (place, sent[place]) for place, key in enumerate(message_ids) if key}
    if lost := [(message, None) for key, message in zip(message_ids, sent, strict=True) if not key]:  # not taken
        yield list(lost)
    last_reply = time.monotonic()
    patience = first_patience = min(SILENCE, idle_timeout / 3, round_timeout / 3)
    while waiting:
        oldest = next(iter(waiting.values()))[0]
        asked = [key for key, (place, _) in islice(waiting.items(), window) if place < oldest + window]
        end = min(last_reply + idle_timeout, started + round_timeout)
        replies = grid.pull_until(asked, end) if isinstance(grid, KeepsDeadlines) else grid.pull_messages(asked)
        batch: list[tuple[Message, Message | None]] = []
        for reply in replies:
            if (found := waiting.pop(reply.metadata.reply_to_message_id, None)) is not None:
                batch.append((found[1], reply))
        if batch:
            yield batch
        now = time.monotonic()
        if batch:
            last_reply, patience = now, first_patience
        elif now > end:
            _abandon(grid, asked)
            yield [(waiting.pop(key)[1], None) for key in asked]
        else:
            if now > last_reply + patience:
                patience *= 2
                on_silence([message for _, message in waiting.values()], end - now)
            time.sleep(POLL_SECONDS)


def _abandon(grid: Grid, message_ids: Iterable[str]) -> None:
    if isinstance(grid, KeepsDeadlines):
        grid.abandon(message_ids)
