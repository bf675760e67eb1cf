"""Grid of a ServerApp whose pulls wait for nobody: a reply is read object by object as its client sends it.

The time limit of a phase can then hold around everything: a client whose objects come slowly or never delays neither
the others nor the end of the phase. What a reply costs is known before it is built: the number of its objects and
their bytes, also those that an array has from one piece that it names many times.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedlab.comm.replies import UNREADABLE
from fedlab.comm.tensors import content_bytes
from fedlab.comm.wrapped_grid import WrappedGrid
from fedlab.engines.flower_internals import error_reply, is_http_grid
from fedlab.engines.flower_objects import (
    Announcement,
    ReplyReader,
    UnreadableReply,
    build,
    is_chunk,
    unpacked_bytes,
)

if TYPE_CHECKING:  # its import takes a second
    from flwr.superlink.grid.http_grid import HttpGrid

MEGABYTE = 1_000_000
MAX_RECORDS_MB = 16  # of a reply without its arrays: names, numbers and texts
SPARE_OBJECTS = 500  # of a reply, beyond ...
OBJECTS_RATIO = 4  # ... as many times those of the message
MIN_PAUSE, MAX_PAUSE = 0.02, 0.5  # seconds between two questions for an object that is not there yet
GRACE = 2.0  # seconds after a deadline in which objects that are there already are read
MAX_FORGOTTEN = 10_000  # messages whose late replies are deleted when they come


@dataclass
class PartialReply:
    """A reply of which some objects have come."""

    announcement: Announcement
    contents: dict[str, bytes] = field(default_factory=dict)
    records: int = 0  # bytes of objects that are no pieces of arrays
    arrays: int = 0
    pause: float = MIN_PAUSE
    ask_at: float = 0.0

    def missing(self) -> str | None:
        """Return the id of the first object that has not come."""
        objects = self.announcement.objects
        return objects[len(self.contents)] if len(self.contents) < len(objects) else None

    def take(self, object_id: str, content: bytes | None, now: float) -> bool:
        """Store the answer for an object; return True if it has come."""
        if content is None:
            self.ask_at, self.pause = now + self.pause, min(2 * self.pause, MAX_PAUSE)
            return False
        self.contents[object_id], self.pause = content, MIN_PAUSE
        if is_chunk(content):
            self.arrays += len(content)
        else:
            self.records += len(content)
        return True


class SuperLinkGrid(WrappedGrid["HttpGrid"]):
    """Flower's grid of a ServerApp process, with pulls that return at once.

    Parameters
    ----------
    grid
        Flower's own.
    max_reply_mb
        Largest reply in megabytes.
    """

    def __init__(self, grid: HttpGrid, max_reply_mb: float) -> None:
        super().__init__(grid)
        self.reader, self.max_reply_mb = ReplyReader(grid), max_reply_mb
        self._max_objects: dict[str, int] = {}  # message id to the number of objects that its reply may have
        self._partial: dict[str, PartialReply] = {}  # message id to its reply
        self._given_up: dict[str, None] = {}  # ids of messages whose replies nobody waits for

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Push messages to their nodes; return the messages' ids."""
        sent = list(messages)
        ids = list(self.grid.push_messages(sent))
        for message_id, message in zip(ids, sent, strict=False):
            if message_id:
                self._max_objects[message_id] = SPARE_OBJECTS + OBJECTS_RATIO * number_of_objects(message.content)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are complete."""
        return self.pull_until(message_ids, time.monotonic())

    def pull_until(self, message_ids: Iterable[str], deadline: float) -> list[Message]:
        """Return replies to some of the messages as soon as one is complete, or no more objects are there.

        Parameters
        ----------
        deadline
            Time (``time.monotonic()``) at which it returns in any case; what is there by then is read for ``GRACE``
            seconds more.
        """
        wanted = list(message_ids)
        self._announced(wanted)
        end = max(deadline, time.monotonic() + GRACE)
        replies: list[Message] = []
        progress = True
        while progress and not replies and time.monotonic() < end:
            pending = [(one, self._partial[one]) for one in wanted if one in self._partial]
            steps = [self._step(one, partial, replies) for one, partial in pending if time.monotonic() < end]
            progress = any(steps)
        return replies

    def abandon(self, message_ids: Iterable[str]) -> None:
        """Give up the replies to these messages; Flower's server deletes those that come all the same.

        It also deletes what the messages hold, so that a node which has not taken its message by now, and comes back
        later, does not begin the work of a phase that is over.
        """
        for message_id in message_ids:
            if partial := self._partial.get(message_id):
                self._done(message_id, partial)
            elif message_id in self._max_objects:
                self.reader.forget(message_id)
                if len(self._given_up) < MAX_FORGOTTEN:
                    self._given_up[message_id] = None

    def _announced(self, wanted: list[str]) -> None:
        """Ask for replies that were announced since; delete those that nobody waits for."""
        asked = [one for one in wanted if one in self._max_objects and one not in self._partial]
        if not asked and not self._given_up:
            return
        for found in self.reader.announced([*asked, *self._given_up], self._max_objects):
            if found.reply_to in self._given_up:
                del self._given_up[found.reply_to]
                self._max_objects.pop(found.reply_to, None)
                self.reader.forget(found.message_id)
            else:
                self._partial[found.reply_to] = PartialReply(found)

    def _step(self, message_id: str, partial: PartialReply, replies: list[Message]) -> bool:
        """Ask for the next object of a reply; return True if it came. The last one makes the reply."""
        now = time.monotonic()
        if now < partial.ask_at:
            return False
        try:
            self._check(message_id, partial)
            if missing := partial.missing():
                if not partial.take(missing, self.reader.read(missing), now):
                    return False
                self._check(message_id, partial)
            if partial.missing() is None:
                replies.append(self._built(partial))
                self._done(message_id, partial)
        except UnreadableReply as error:
            replies.append(error_reply(self.grid.run.run_id, partial.announcement.source, message_id, error_of(error)))
            self._done(message_id, partial)
        return True

    def _check(self, message_id: str, partial: PartialReply) -> None:
        """Raise UnreadableReply for a reply that is larger than it may be."""
        most = self._max_objects[message_id]
        if len(partial.announcement.objects) > most:
            raise UnreadableReply(f"it consists of more than {most} objects; expected about as many as in the message")
        if partial.records > MAX_RECORDS_MB * MEGABYTE:
            raise UnreadableReply(f"it has more than {MAX_RECORDS_MB} MB of names, numbers and texts")
        self._check_size(partial.arrays)

    def _check_size(self, size: int) -> None:
        if size > self.max_reply_mb * MEGABYTE:
            raise UnreadableReply(
                f"it has {size / MEGABYTE:.1f} MB or more, and option comm.max_reply_mb allows {self.max_reply_mb:g} MB"
            )

    def _built(self, partial: PartialReply) -> Message:
        self._check_size(unpacked_bytes(partial.contents))
        return build(partial.announcement, partial.contents)

    def _done(self, message_id: str, partial: PartialReply) -> None:
        """Forget a reply, here and in Flower's server."""
        self._partial.pop(message_id, None)
        self._max_objects.pop(message_id, None)
        self.reader.forget(partial.announcement.message_id)

    # --- the rest is Flower's ---

    def get_node_ids(self) -> list[int]:
        """Return the nodes that are connected."""
        return list(self.grid.get_node_ids())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies that come within the time."""
        return list(self.grid.send_and_receive(messages, timeout=timeout))


def reading_step_by_step(grid: Grid, max_reply_mb: float) -> Grid:
    """Return a grid whose pulls do not wait; one that is not that of a ServerApp process stays as it is."""
    return SuperLinkGrid(grid, max_reply_mb) if is_http_grid(grid) else grid


def number_of_objects(content: RecordDict) -> int:
    """Return about how many objects Flower makes of a content: records, arrays and pieces of up to 5 MB."""
    arrays = sum(len(record) for record in content.values() if isinstance(record, ArrayRecord))
    return 2 + len(content) + 2 * arrays + content_bytes(content) // (5 * MEGABYTE)


def error_of(error: UnreadableReply) -> Error:
    """Return the error that stands for a reply that cannot be used."""
    return Error(UNREADABLE, str(error))
