"""Encodings of floats on the wire: unchanged, half precision, or matrices in 8 bits.

============  =========================================================================================================
format        encoding
============  =========================================================================================================
``float32``   every array unchanged
``float16``   every float array in half precision
``int8``      float32 arrays of two dimensions and more as signed bytes, with one float32 scale for each row (the first
              dimension: a unit's or a filter's weights); the others in half precision, float64 too: those are
              mixtures, whose small variances a row's scale would round to 0
============  =========================================================================================================

An array that half precision cannot hold (beyond 65,504) is sent unchanged. Names record the encoding, so decoding needs
no option, and an array that was not encoded passes through. Integers and masks are never changed.

**Source**: symmetric quantization to [-127, 127] with a scale for each output channel, as in Jacob et al. 2018,
Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
SEPARATOR = "\x1f"  # between an encoded array's name and its encoding; no parameter name of torch contains it
MAX_FLOAT16 = 65504.0
FLOAT_DTYPES = ("float32", "float64")


def encode(content: RecordDict, form: str) -> RecordDict:
    """Return the content as it crosses the wire; for ``float32`` the content itself."""
    if form == FLOAT32:
        return content
    encoded = RecordDict()
    for name, record in content.items():
        encoded[name] = ArrayRecord(dict(_encoded(record, form))) if isinstance(record, ArrayRecord) else record
    return encoded


def decode(content: RecordDict) -> RecordDict:
    """Return the content that was encoded, up to the precision that was lost; one without encoded arrays as it is.

    Raises
    ------
    ValueError
        When an encoded array's parts do not fit together.
    """
    encoded = [
        name
        for name, record in content.items()
        if isinstance(record, ArrayRecord) and any(SEPARATOR in key for key in record.keys())  # noqa: SIM118
    ]
    if not encoded:
        return content
    decoded = content.copy()
    for name in encoded:
        decoded[name] = ArrayRecord(dict(_decoded(content.array_records[name])))
    return decoded


def _encoded(record: ArrayRecord, form: str) -> Iterator[tuple[str, Array]]:
    for name, array in record.items():
        if array.dtype not in FLOAT_DTYPES:
            yield name, array
            continue
        values = array.numpy()
        if not np.all(np.abs(values) <= MAX_FLOAT16):  # not for half precision; NaN neither
            yield name, array
        elif form == INT8 and values.ndim >= 2 and array.dtype == "float32":
            rows, scales = _quantized(values)
            yield SEPARATOR.join((name, INT8, array.dtype)), Array(rows)
            yield SEPARATOR.join((name, "scale", array.dtype)), Array(scales)
        else:
            yield SEPARATOR.join((name, FLOAT16, array.dtype)), Array(values.astype(np.float16))


def _quantized(values: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 of the same shape and scales (rows,): value = scale x int8, within half a scale."""
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), initial=0)
    scales = (largest / 127).astype(np.float32)
    scales[scales == 0] = 1  # a row of zeros, or of values that single precision takes for zeros
    steps = np.rint(values / _broadcastable(scales, values.ndim))
    return np.clip(steps, -127, 127).astype(np.int8), scales


def _decoded(record: ArrayRecord) -> Iterator[tuple[str, Array]]:
    seen: set[str] = set()
    for key, array in record.items():
        name, *done = key.split(SEPARATOR)
        if done and (len(done) != 2 or done[1] not in FLOAT_DTYPES or done[0] not in (FLOAT16, INT8, "scale")):
            raise ValueError(f"array {name!r} was encoded in a way that is not known: {done}")
        if done and done[0] == "scale":
            if SEPARATOR.join((name, INT8, done[1])) not in record:
                raise ValueError(f"array {name!r} came as scales without its 8 bits")
            continue
        if name in seen:
            raise ValueError(f"array {name!r} came twice")
        seen.add(name)
        if not done:
            yield name, array
            continue
        kind, dtype = done
        values = _read(name, array)
        if kind == FLOAT16:
            if values.dtype != np.float16:
                raise ValueError(f"array {name!r} came as {values.dtype}; expected float16")
            yield name, Array(values.astype(dtype))
        else:
            scale_key = SEPARATOR.join((name, "scale", dtype))
            if scale_key not in record:
                raise ValueError(f"array {name!r} came in 8 bits without its scales")
            scales = _read(name, record[scale_key])
            fitting = values.ndim >= 2 and scales.shape == values.shape[:1]
            if values.dtype != np.int8 or scales.dtype != np.float32 or not fitting:
                raise ValueError(
                    f"array {name!r} came as {values.dtype} {values.shape} with scales {scales.dtype} {scales.shape}; "
                    "expected int8 with one float32 scale for each row"
                )
            yield name, Array((values * scales.reshape(-1, *(1,) * (values.ndim - 1))).astype(dtype))


def _read(name: str, array: Array) -> NDArray[Any]:
    try:
        values = array.numpy()
    except Exception as error:  # numpy raises many types for bytes that are no array
        raise ValueError(f"array {name!r} cannot be read: {error}") from None
    if not isinstance(values, np.ndarray):  # an archive of several
        raise ValueError(f"array {name!r} cannot be read: it is a {type(values).__name__}")
    return values


def _broadcastable(scales: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """Return scales (rows,) as (rows, 1, ..., 1) with ``dimensions`` dimensions."""
    return scales.reshape(-1, *(1,) * (dimensions - 1))
