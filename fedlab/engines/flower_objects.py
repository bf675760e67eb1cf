"""Flower's private parts, continued: the replies of a ServerApp's grid, read object by object.

A reply is announced with the ids of its objects (records, arrays, pieces of arrays), which its client then pushes one
by one. ``HttpGrid.pull_messages`` waits for all of them, for two hours if it has to, and then builds the message
whatever it is; :class:`ReplyReader` has its steps one by one. Its canary is ``test_superlink_grid.py``.

**Source**: Flower 1.39, ``flwr/superlink/grid/http_grid.py``, ``flwr/supercore/inflatable``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Array, Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_object_body, get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedlab.engines.flower_internals import set_message_id

if TYPE_CHECKING:  # its import takes a second
    from flwr.superlink.grid.http_grid import HttpGrid

MAX_DEPTH = 6  # of a tree of objects; a message has 5: message, records, a record, an array, a piece of it
CHUNK = "ArrayChunk"


class UnreadableReply(Exception):
    """A reply that is no message, or not the one that was announced."""


@dataclass(frozen=True)
class Announcement:
    """A reply that a client has announced.

    Attributes
    ----------
    message_id
        Id of the reply.
    reply_to
        Id of the message that it answers, and ``source``, the node that sent it: both as Flower's server checked them.
    objects
        Ids of its objects, each once, those that others consist of first; at most as many as were allowed, and one.
    """

    message_id: str
    reply_to: str
    source: int
    objects: tuple[str, ...]


class ReplyReader:
    """The steps of ``HttpGrid.pull_messages``; none of them waits for a client."""

    def __init__(self, grid: HttpGrid) -> None:
        self.grid = grid

    @property
    def _run_id(self) -> int:
        return int(self.grid.run.run_id)

    def announced(self, message_ids: Iterable[str], max_objects: Mapping[str, int]) -> list[Announcement]:
        """Return the replies to these messages that were announced since; each is returned once.

        Parameters
        ----------
        max_objects
            Number of objects that a reply may have, by the id of the message that it answers; 0 where it is missing.
        """
        answer = self.grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=list(message_ids)))
        found = []
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            head = message.metadata
            objects = object_ids(tree, max_objects.get(head.reply_to_message_id, 0) + 1)
            found.append(Announcement(head.message_id, head.reply_to_message_id, head.src_node_id, objects))
        return found

    def read(self, object_id: str) -> bytes | None:
        """Return an object's content; None while its client has not pushed it.

        Raises
        ------
        UnreadableReply
            When it never will be: the time in which its client could push it is over.
        """
        request = PullObjectRequest(node=self.grid.node, run_id=self._run_id, object_id=object_id)
        answer = self.grid._runtime_client.PullObject(request)
        if not answer.object_found:
            raise UnreadableReply("its client did not send all of it in time")
        return bytes(answer.object_content) if answer.object_available else None

    def forget(self, message_id: str) -> None:
        """Let Flower's server delete the objects of a reply, or of a message, which its node then cannot take."""
        request = ConfirmMessageReceivedRequest(node=self.grid.node, run_id=self._run_id, message_object_id=message_id)
        self.grid._runtime_client.ConfirmMessageReceived(request)


def object_ids(tree: ObjectTree, most: int) -> tuple[str, ...]:
    """Return the ids of a tree's objects, each once, those below others first; no more than ``most`` are looked for.

    A tree may name one object many times: then reading stops at as many nodes. A tree that is too deep is cut.
    """
    found: list[str] = []

    def visit(node: ObjectTree, depth: int) -> None:
        if depth > MAX_DEPTH:
            return
        for child in node.children:
            if len(found) >= most:
                return
            visit(child, depth + 1)
        found.append(node.object_id)

    visit(tree, 1)
    return tuple(dict.fromkeys(found)) if len(found) < most else tuple(found[:most])


def is_chunk(content: bytes) -> bool:
    """Return True for a piece of an array; any other object holds names, numbers and texts."""
    return content.startswith(CHUNK.encode())


def unpacked_bytes(contents: Mapping[str, bytes]) -> int:
    """Return the bytes of all arrays of a reply: an array may consist of one piece many times.

    Raises
    ------
    UnreadableReply
        When an array's description cannot be read.
    """
    total = 0
    try:
        for content in contents.values():
            kind, children, _ = get_object_head_values_from_object_content(content)
            if kind == "Array":
                for place in json.loads(get_object_body(content, Array))["arraychunk_ids"]:
                    total += len(contents[children[place]])
    except Exception as error:
        raise UnreadableReply(f"its objects cannot be read: {type(error).__name__}: {error}") from None
    return total


def build(announcement: Announcement, contents: dict[str, bytes]) -> Message:
    """Return the message that consists of these objects, which are used up.

    Raises
    ------
    UnreadableReply
        When they are no message, or one with another head than was announced.
    """
    try:
        message: Any = inflate_object_from_contents(announcement.message_id, contents)
    except Exception as error:  # whatever a client may send
        raise UnreadableReply(f"its objects cannot be read: {type(error).__name__}: {error}") from None
    if not isinstance(message, Message):
        raise UnreadableReply(f"it is a {type(message).__name__} and no message")
    head = message.metadata
    if (head.reply_to_message_id, head.src_node_id) != (announcement.reply_to, announcement.source):
        raise UnreadableReply("it names another message or another sender than those that it was announced with")
    set_message_id(message, announcement.message_id)
    return message
