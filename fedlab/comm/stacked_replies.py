"""Replies of clients that trained at once: rows of one stack of models, and of columns of numbers.

A thousand replies one by one are tens of thousands of records and entries, each of which Flower checks and the server
reads several times. Here such a reply is a row: it is a Flower message as any other, but its content is made when
somebody asks for it. Who reads all replies in the same way (their sizes, what the server checks, their metrics) finds
the answer for all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.metadata import Metadata

from fedlab.comm.messages import reply_metadata
from fedlab.comm.tensors import content_bytes, tensor_record
from fedlab.vectorized.stacked_states import StackedStates

Found = TypeVar("Found")
Column = Sequence[int] | Sequence[float]  # one number of each row, all of one type


@dataclass
class StackedContents:
    """Contents of several messages, which differ in values only.

    Attributes
    ----------
    arrays
        By record the states of models, of which each content has a row.
    metrics
        By record and metric the numbers of which each content has one.
    configs
        Records that are the same in all contents; each content has a copy.
    """

    arrays: Mapping[str, StackedStates]
    metrics: Mapping[str, Mapping[str, Column]]
    configs: dict[str, ConfigRecord] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, row: int) -> RecordDict:
        """Return one content."""
        arrays = {name: tensor_record(states[row]) for name, states in self.arrays.items()}
        metrics = {name: MetricRecord({**self.numbers(name, row)}) for name in self.metrics}
        return RecordDict({**arrays, **metrics, **{name: record.copy() for name, record in self.configs.items()}})

    @property
    def names(self) -> set[str]:
        """Names of the records."""
        return {*self.arrays, *self.metrics, *self.configs}

    def numbers(self, name: str, row: int) -> dict[str, int | float]:
        """Return the metrics of a record of one content."""
        return {metric: column[row] for metric, column in self.metrics[name].items()}

    def once(self, key: Hashable, find: Callable[[StackedContents], Found]) -> Found:
        """Return what ``find`` returns for these contents, which is asked once for a key."""
        if key not in self._known:
            self._known[key] = find(self)
        found: Found = self._known[key]
        return found

    def bytes(self, row: int) -> int:
        """Return the size of one content in bytes, as it would be serialized."""
        return self.once("bytes", StackedContents._all_bytes)[row]

    def _all_bytes(self) -> list[int]:
        """Return the size of each content: floats have one size, and integers one for each number of bits."""
        integers = [
            [_bits(cast(int, number)) for number in column]
            for columns in self.metrics.values()
            for column in columns.values()
            if isinstance(column[0], int)
        ]
        sizes: dict[tuple[int, ...], int] = {}
        kinds = list(zip(*integers, strict=True)) if integers else [()] * len(self)
        for row, kind in enumerate(kinds):
            if kind not in sizes:
                sizes[kind] = content_bytes(self[row])
        return [sizes[kind] for kind in kinds]


def _bits(number: int) -> int:
    """Return the bits of a signed integer in a protocol buffer, on which the bytes that it takes depend."""
    return (2 * number if number >= 0 else -2 * number - 1).bit_length()


class StackedContent(NamedTuple):
    """One of several stacked contents."""

    of: StackedContents
    row: int


class StackedReply(Message):
    """A reply whose content is one of several stacked contents until somebody asks for it.

    Parameters
    ----------
    of, row
        The contents, and the place of this one's among them.
    reply_to
        The message that it answers.

    **Source**: the metadata are those of ``Message(content, reply_to=...)`` of ``flwr/app/message/message.py``, Flower
    1.39.
    """

    __qualname__ = "Message"  # Flower writes the name of the class into what crosses the wire

    def __init__(self, of: StackedContents, row: int, reply_to: Message) -> None:
        self.__dict__.update(
            _metadata=reply_metadata(reply_to.metadata), _content=None, _error=None, stacked=StackedContent(of, row)
        )

    @property
    def content(self) -> RecordDict:
        """The content, which is this reply's own from now on."""
        if self.__dict__["_content"] is None:
            of, row = self.__dict__["stacked"]
            self.__dict__.update(_content=of[row], stacked=None)
        found: RecordDict = self.__dict__["_content"]
        return found

    @content.setter
    def content(self, value: RecordDict) -> None:
        self.__dict__.update(_content=value, stacked=None)

    def has_content(self) -> bool:
        """Return True, since a content is made when it is read."""
        return True

    def __reduce__(self) -> tuple[Callable[[RecordDict, Metadata], Message], tuple[RecordDict, Metadata]]:
        return _message_of, (self.content, self.metadata)  # this row alone; as of arrays, the class cannot be found


def _message_of(content: RecordDict, metadata: Metadata) -> Message:
    kind: Any = Message  # its overloads leave this way out
    made: Message = kind(content, metadata=metadata)
    return made


def stacked_content(message: Message) -> StackedContent | None:
    """Return where the content of a message is stacked; None if the message has a content of its own."""
    found: StackedContent | None = message.__dict__.get("stacked")
    return found


def message_bytes(message: Message) -> int:
    """Return the size of a message's content in bytes, as it would be serialized."""
    stacked = stacked_content(message)
    return content_bytes(message.content) if stacked is None else stacked.of.bytes(stacked.row)


def config_of(message: Message, name: str) -> ConfigRecord | None:
    """Return a config record of a message, to read only; None if it has no such record."""
    stacked = stacked_content(message)
    found = message.content.get(name) if stacked is None else stacked.of.configs.get(name)
    return found if isinstance(found, ConfigRecord) else None
