"""Tensors in Flower's records: handed over by reference in one process, serialized only where bytes are asked for.

Flower's ``Array`` holds the bytes of ``numpy.save``. Within one process nobody reads these bytes, and writing and
parsing them takes longer than a step of a small client. :class:`TensorArray` holds the tensor and makes the bytes on
demand, so on a network it is the same array. Sizes of messages follow from shapes and types.

Clients that train at once have their models in one stack, and :class:`RowArray` is a row of it: its tensor is made on
demand, too, and stays on the device where nobody asks for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType
from flwr.common.serde import array_to_proto, recorddict_to_proto
from numpy.typing import NDArray
from torch import Tensor

from fedlab.vectorized.stacked_states import StackedState, StackedStates

TAG = 1  # bytes of a protocol buffer field's number, for numbers below 16


class TensorArray(Array):
    """A Flower array that holds a tensor on the CPU; ``data`` is made when it is asked for.

    Readers get the tensor itself: whoever changes it in place changes it for every other reader too, which
    :class:`WriteGuard` finds out.
    """

    __qualname__ = "Array"  # Flower writes the name of the class into what crosses the wire

    def __init__(self, tensor: Tensor) -> None:
        shape, dtype = tuple(tensor.shape), _dtype_name(tensor.dtype)
        self.__dict__.update(tensor=tensor, dtype=dtype, shape=shape, stype=SType.NUMPY)

    @property
    def tensor(self) -> Tensor:
        """The tensor itself."""
        found: Tensor = self.__dict__["tensor"]
        return found

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The bytes of ``numpy.save``."""
        if "bytes" not in self.__dict__:
            self.__dict__["bytes"] = Array(self.tensor.numpy()).data
        found: bytes = self.__dict__["bytes"]
        return found

    def numpy(self) -> NDArray[Any]:
        """Return the tensor as a NumPy array that shares its memory."""
        return self.tensor.numpy()

    def __reduce__(self) -> tuple[Callable[[Tensor], TensorArray], tuple[Tensor]]:
        return _tensor_array, (self.tensor,)  # a class of another name than its own cannot be found again


class RowArray(TensorArray):
    """A Flower array that is one model's row of stacked states, wherever these are; its tensor is on the CPU."""

    __qualname__ = "Array"

    of: StackedStates
    row: int
    name: str

    def __init__(self, of: StackedStates, row: int, name: str) -> None:
        dtype, shape = of.kinds[name]
        self.__dict__.update(of=of, row=row, name=name, dtype=_dtype_name(dtype), shape=tuple(shape), stype=SType.NUMPY)

    @property
    def tensor(self) -> Tensor:
        """The row, copied from the stack when it is asked for."""
        if "tensor" not in self.__dict__:
            self.__dict__["tensor"] = self.of.on_host(self.name, self.row)
        found: Tensor = self.__dict__["tensor"]
        return found


class RowTensors(Mapping[str, Tensor]):
    """The tensors of one model of stacked states by name, on the CPU; each is made when it is read, and kept.

    Parameters
    ----------
    of, row
        The stacked states, and the place of this model's among them.
    record
        The record of :class:`RowArray` that keeps the tensors; None: they are not in any record yet.
    """

    def __init__(self, of: StackedStates, row: int, record: ArrayRecord | None = None) -> None:
        self.of, self.row, self._record = of, row, record

    def __getitem__(self, name: str) -> Tensor:
        if self._record is None:
            self._record = tensor_record(self.of[self.row])
        array = self._record[name]
        assert isinstance(array, RowArray)
        return array.tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.of.kinds)

    def __len__(self) -> int:
        return len(self.of.kinds)

    def keys(self) -> KeysView[str]:
        """Return the names, as a dictionary does."""
        return self.of.kinds.keys()


@cache
def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensor_array(tensor: Tensor) -> TensorArray:
    return TensorArray(tensor)


def tensor_record(state: Mapping[str, Tensor], *, copy: bool = True) -> ArrayRecord:
    """Return tensors by name as a record.

    Parameters
    ----------
    state
        Tensors on any device, copied to the CPU; those of a :class:`StackedState` stay where they are until they are
        asked for.
    copy
        Take a snapshot, so that later changes of the tensors do not reach the record. False where nothing else
        refers to them.
    """
    record = ArrayRecord()
    if isinstance(state, StackedState):
        entries(record).update({name: RowArray(state.of, state.row, name) for name in state})
        return record
    for name, tensor in state.items():
        here = tensor.detach()
        record[name] = TensorArray(here.cpu() if not here.is_cpu else here.clone() if copy else here)
    return record


def tensors_of(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of a record by name, which may be shared with other readers: not to be changed in place."""
    arrays = entries(record)
    found = {name: array.tensor for name, array in arrays.items() if isinstance(array, TensorArray)}
    return found if len(found) == len(arrays) else dict(record.to_torch_state_dict())


def tensors_on_demand(record: ArrayRecord) -> Mapping[str, Tensor]:
    """Return the tensors of a record by name as :func:`tensors_of`, those of a stack only when they are read."""
    arrays = entries(record)
    first = next(iter(arrays.values()), None)
    if type(first) is not RowArray:
        return tensors_of(record)
    of, row = first.of, first.row
    if of.kinds.keys() != arrays.keys() or not all(
        type(array) is RowArray and array.of is of and array.row == row and array.name == name
        for name, array in arrays.items()
    ):
        return tensors_of(record)
    return RowTensors(of, row, record)


def entries(record: ArrayRecord | ConfigRecord | MetricRecord | RecordDict) -> dict[str, Any]:
    """Return the dictionary inside a record, to read quickly, or to fill with what needs no check of its type.

    **Source**: ``TypedDict`` of ``flwr/app/message/typeddict.py``, Flower 1.39.
    """
    found: dict[str, Any] = record.__dict__["_data"]
    return found


class WriteGuard:
    """Finds out whether tensors that were handed out by reference were changed in place.

    torch counts the changes of each tensor (``Tensor._version``).
    """

    def __init__(self, contents: Iterable[RecordDict]) -> None:
        self._versions = {
            id(array): (f"{name}/{key}", array.tensor, array.tensor._version)
            for content in {id(content): content for content in contents}.values()
            for name, record in content.items()
            if isinstance(record, ArrayRecord)
            for key, array in record.items()
            if isinstance(array, TensorArray)
        }

    def changed(self) -> list[str]:
        """Return the names, ``record/array``, of those that were changed."""
        return [name for name, tensor, version in self._versions.values() if tensor._version != version]


def content_bytes(content: RecordDict) -> int:
    """Return the size of a message's content in bytes, as it would be serialized."""
    total = 0
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            total += _nested(_text(name) + _nested(_arrays_bytes(record)))
        elif (scalars := _scalars_bytes(record)) is not None:
            total += _nested(_text(name) + _nested(scalars))
        else:
            total += recorddict_to_proto(RecordDict({name: record})).ByteSize()
    return total


def _arrays_bytes(record: ArrayRecord) -> int:
    if all(isinstance(array, TensorArray) for array in record.values()):
        return _tensors_bytes(tuple((key, array.dtype, array.shape) for key, array in record.items()))
    return sum(_array_item_bytes(key, array) for key, array in record.items())


@lru_cache(maxsize=64)
def _tensors_bytes(arrays: tuple[tuple[str, str, tuple[int, ...]], ...]) -> int:
    """Return the bytes of tensors by name, type and shape: those of a round are the same for all its clients."""
    return sum(_item_bytes(key, dtype, shape, SType.NUMPY, _saved_bytes(dtype, shape)) for key, dtype, shape in arrays)


def _scalars_bytes(record: MetricRecord | ConfigRecord) -> int | None:
    """Return the size of a record of numbers and short texts; None for one that has anything else."""
    total = 0
    for key, value in record.items():
        if isinstance(value, bool):
            size = TAG + 1
        elif isinstance(value, float):
            size = TAG + 8
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            size = TAG + _varint_bytes(2 * value if value >= 0 else -2 * value - 1)
        elif isinstance(value, str):
            size = _nested(len(value.encode()))
        else:
            return None
        total += _nested(_text(key) + _nested(size))
    return total


def _array_item_bytes(key: str, array: Array) -> int:
    length = _saved_bytes(array.dtype, array.shape) if isinstance(array, TensorArray) else len(array.data)
    return _item_bytes(key, array.dtype, array.shape, array.stype, length)


def _item_bytes(key: str, dtype: str, shape: tuple[int, ...], stype: str, length: int) -> int:
    return _nested(_text(key) + _nested(_head_bytes(dtype, shape, stype) + (_nested(length) if length else 0)))


@cache
def _head_bytes(dtype: str, shape: tuple[int, ...], stype: str) -> int:
    size: int = array_to_proto(Array(dtype, shape, stype, b"")).ByteSize()
    return size


@cache
def _saved_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the length of what ``numpy.save`` writes for an array of this type and shape."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    return len(header.getvalue()) + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


@cache
def _text(text: str) -> int:
    length = len(text.encode())
    return _nested(length) if length else 0


def _nested(length: int) -> int:
    """Return the bytes of a field of bytes, a text or a message of this length: tag, length, and itself."""
    return TAG + _varint_bytes(length) + length


def _varint_bytes(number: int) -> int:
    return max(1, (number.bit_length() + 6) // 7)
