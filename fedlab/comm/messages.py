"""Messages made from others, without the checks that Flower has already made of those.

Of a thousand messages with one content these checks are most of what a message takes.

**Source**: ``flwr/app/message/message.py`` and ``flwr/app/metadata.py``, Flower 1.39.
"""

from __future__ import annotations

import time
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata


def with_content(message: Message, content: RecordDict) -> Message:
    """Return the same message with another content; its metadata are shared."""
    made = Message.__new__(Message)
    made.__dict__.update(message.__dict__, _content=content)
    return made


def to_node(message: Message, node: int) -> Message:
    """Return a message, which no grid has sent yet, to another node; its content is shared."""
    made = Message.__new__(Message)
    made.__dict__.update(message.__dict__, _metadata=_metadata_like(message.metadata, _dst_node_id=node))
    return made


def reply_metadata(asked: Metadata) -> Metadata:
    """Return the metadata of a reply to a message: those of ``Message(content, reply_to=...)``."""
    known, now = asked.__dict__, time.time()
    return _metadata_like(
        asked,
        _message_id="",
        _src_node_id=known["_dst_node_id"],
        _dst_node_id=known["_src_node_id"],
        _reply_to_message_id=known["_message_id"],
        _created_at=now,
        _ttl=known["_created_at"] + known["_ttl"] - now,
        _src_task_id=known["_dst_task_id"],
        _dst_task_id=known["_src_task_id"],
        _delivered_at="",
    )


def _metadata_like(known: Metadata, **own: Any) -> Metadata:
    made = Metadata.__new__(Metadata)
    made.__dict__.update(known.__dict__, **own)
    return made
