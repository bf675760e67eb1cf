"""Messages between the processes of one machine: records described in a few bytes, tensors as one block of memory.

A block can be written into a file in memory, which any number of processes map: the arrays of a round are then written
once, whoever reads them.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedlab.comm.tensors import TensorArray

SHARED_MEMORY = Path("/dev/shm")
ALIGNMENT = 64  # bytes; of each tensor in a block

Record = ArrayRecord | ConfigRecord | MetricRecord


@dataclass(frozen=True)
class TensorAt:
    """Place of a tensor in a block."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Described:
    """A record without the bytes of its tensors: its type, its entries, and the size of its block."""

    kind: type[Record]
    entries: dict[str, Any]
    size: int


def describe(record: Record) -> tuple[Described, list[Tensor]]:
    """Return a record's description, and the tensors that belong into its block, in order."""
    if not isinstance(record, ArrayRecord):
        return Described(type(record), dict(record), 0), []
    entries: dict[str, Any] = {}
    tensors: list[Tensor] = []
    offset = 0
    for key, array in record.items():
        if not isinstance(array, TensorArray):
            entries[key] = (array.dtype, array.shape, array.stype, array.data)
            continue
        tensor = array.tensor.contiguous()
        entries[key] = TensorAt(tensor.dtype, tuple(tensor.shape), offset)
        tensors.append(tensor)
        offset += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
    return Described(ArrayRecord, entries, offset), tensors


def restore(described: Described, block: bytearray | mmap.mmap | memoryview, start: int = 0) -> Record:
    """Return the record whose tensors are in a block from ``start`` on; they share its memory."""
    if described.kind is not ArrayRecord:
        return described.kind(described.entries)
    record = ArrayRecord()
    for key, entry in described.entries.items():
        record[key] = TensorArray(_tensor(entry, block, start)) if isinstance(entry, TensorAt) else Array(*entry)
    return record


def _tensor(place: TensorAt, block: bytearray | mmap.mmap | memoryview, start: int) -> Tensor:
    count = torch.Size(place.shape).numel()
    if not count:
        return torch.empty(place.shape, dtype=place.dtype)
    flat = torch.frombuffer(block, dtype=place.dtype, count=count, offset=start + place.offset)
    return flat.reshape(place.shape)


def fill(block: bytearray | mmap.mmap, tensors: Iterable[Tensor], start: int = 0) -> None:
    """Write tensors into a block from ``start`` on, as :func:`describe` placed them."""
    offset = start
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if size:
            torch.frombuffer(block, dtype=torch.uint8, count=size, offset=offset).copy_(
                tensor.reshape(-1).view(torch.uint8)
            )
        offset += -(-size // ALIGNMENT) * ALIGNMENT


def pack(content: Mapping[str, Record]) -> tuple[dict[str, Described], bytearray]:
    """Return the description of all records of a content, and one block of their tensors, one record after another."""
    described = {name: describe(record) for name, record in content.items()}
    block, start = bytearray(sum(one.size for one, _ in described.values())), 0
    for one, tensors in described.values():
        fill(block, tensors, start)
        start += one.size
    return {name: one for name, (one, _) in described.items()}, block


def unpack(described: Mapping[str, Described], block: bytearray) -> RecordDict:
    """Return what :func:`pack` packed; its tensors share the memory of the block."""
    content, start = RecordDict(), 0
    for name, one in described.items():
        content[name] = restore(one, block, start)
        start += one.size
    return content


class SharedRecord:
    """A record written once into a file in memory, which other processes map.

    Attributes
    ----------
    described
        Its description.
    file
        The open file; its descriptor is what other processes are sent. Empty, and not to be sent, without tensors.
    """

    def __init__(self, record: Record) -> None:
        self.record = record  # kept, so that no other record gets its id
        self.described, tensors = describe(record)
        folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        self.file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by close()
        if self.described.size:
            self.file.truncate(self.described.size)
            block = mmap.mmap(self.file.fileno(), self.described.size)
            fill(block, tensors)

    def close(self) -> None:
        """Give the memory back once no process maps it any more."""
        self.file.close()


def map_record(described: Described, descriptor: int) -> Record:
    """Return a record from another process's file; a change of its tensors stays in this process."""
    if not described.size:
        return restore(described, bytearray())
    return restore(described, mmap.mmap(descriptor, described.size, flags=mmap.MAP_PRIVATE))
