"""Copies to a GPU that nobody waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; a part of a row of bytes is a number of a type only where it begins at a multiple of its size


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of any shape on a device; to a GPU from pinned memory: other copies wait for all work before."""
    if tensor.device.type != "cpu" or device.type != "cuda":
        return tensor.to(device)
    refuse_in_capture()
    return tensor.pin_memory().to(device, non_blocking=True)


def refuse_in_capture() -> None:
    """Validate that no CUDA graph is being captured, since each replay would copy what is in that memory by then.

    Raises
    ------
    RuntimeError
        When one is; the capture fails, and the loss runs without a graph.
    """
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a tensor of the CPU, such as a random number, is copied to the GPU within the graph")


def send_together(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return tensors of a CPU on a device, by name: to a GPU in one copy, whose parts they are."""
    if device.type != "cuda" or len(tensors) < 2:
        return {name: send(tensor, device) for name, tensor in tensors.items()}
    refuse_in_capture()
    parts = layout(tensors)
    return unpack(pack(tensors, parts, pinned=True).to(device, non_blocking=True), parts)


@dataclass(frozen=True)
class Part:
    """Place of a tensor in a row of bytes."""

    name: str
    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.start + prod(self.shape) * self.dtype.itemsize

    def of(self, packed: Tensor) -> Tensor:
        """Return the tensor, which shares memory with the row of bytes (bytes,)."""
        return packed[self.start : self.end].view(self.dtype).view(self.shape)


def layout(tensors: Mapping[str, Tensor]) -> list[Part]:
    """Return where tensors lie in one row of bytes, one after another."""
    parts, start = list[Part](), 0
    for name, tensor in tensors.items():
        parts.append(Part(name, start, tensor.shape, tensor.dtype))
        start = -(-parts[-1].end // ALIGNMENT) * ALIGNMENT
    return parts


def pack(tensors: Mapping[str, Tensor], parts: Sequence[Part], pinned: bool = False) -> Tensor:
    """Return a row of bytes (bytes,) that holds tensors of any shapes in these places."""
    packed = torch.empty(parts[-1].end, dtype=torch.uint8, pin_memory=pinned)
    for part in parts:
        part.of(packed).copy_(tensors[part.name])
    return packed


def unpack(packed: Tensor, parts: Sequence[Part]) -> dict[str, Tensor]:
    """Return the tensors of a row of bytes (bytes,) by name; they share its memory."""
    return {part.name: part.of(packed) for part in parts}
