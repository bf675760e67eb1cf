"""Mutations of a reply's content, as hypothesis draws them: records, arrays, bytes, types, numbers and texts."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from hypothesis import strategies as some

from fedlab.comm import compression
from fedlab.strategies.protocol import CONFIG, METRICS

VALUES = some.sampled_from([np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-320, 1e10, -1e30, 3e38, 1e160, 1e308, -1e308])
DTYPES = some.sampled_from(
    ["float16", "float32", "float64", "int8", "int64", "uint16", "bool", "complex64", "U5", "S3"]
)
NAMES = some.sampled_from(
    ["", "x", "head", "means", "0.weight", f"a{compression.SEPARATOR}int8{compression.SEPARATOR}float32"]
)
WHERE = some.integers(0, 30)
GARBAGE = some.binary(max_size=20) | some.sampled_from([b"\x93NUMPY\x01\x00\xff\xff", b"PK\x03\x04", b"\x80\x04."])
SCALARS = some.sampled_from([float("nan"), float("inf"), -1, 0, 1, 2, 10**12, 1e308, True, "1", [1.0], [1, 2]])
MUTATION = some.one_of(
    some.tuples(some.sampled_from(["drop record", "drop array", "reshape", "cut", "repeat", "swap", "empty"]), WHERE),
    some.tuples(some.sampled_from(["rename record", "rename array", "add array"]), WHERE, NAMES),
    some.tuples(some.just("retype"), WHERE, DTYPES),
    some.tuples(some.sampled_from(["poison one", "poison all", "scale"]), WHERE, VALUES),
    some.tuples(some.just("bytes"), WHERE, GARBAGE),
    some.tuples(some.just("claim"), WHERE, DTYPES),
    some.tuples(some.sampled_from(["metric", "round"]), WHERE, SCALARS),
    some.tuples(some.just("kind"), WHERE, some.sampled_from([ArrayRecord, MetricRecord, ConfigRecord])),
)


def mutate(content, what, where, value=None):
    """Change one thing of a reply; where there is no such thing, nothing."""
    names = list(content)
    if not names:
        return
    name = names[where % len(names)]
    if what == "drop record":
        del content[name]
    elif what == "rename record":
        content[value] = content.pop(name)
    elif what == "kind":
        content[name] = value()
    elif what == "swap":
        other = names[(where + 1) % len(names)]
        content[name], content[other] = content[other], content[name]
    elif what in ("metric", "round"):
        record = content.get(METRICS if what == "metric" else CONFIG)
        if record:
            with_text = isinstance(record, ConfigRecord) or not isinstance(value, bool | str)
            record[list(record)[where % len(record)]] = value if with_text else 0
    else:
        places = [(record, key) for record in content.values() if isinstance(record, ArrayRecord) for key in record]
        if places:
            mutate_array(*places[where % len(places)], what, where, value)


def mutate_array(record, key, what, where, value):
    array = record[key]
    if what == "drop array":
        del record[key]
    elif what == "rename array":
        record[value] = record.pop(key)
    elif what == "add array":
        record[value] = array
    elif what == "bytes":
        record[key] = Array(array.dtype, array.shape, array.stype, value)
    elif what == "claim":
        record[key] = Array(value, (*array.shape, where), array.stype if where % 2 else "torch", array.data)
    else:
        try:
            values = array.numpy()
        except (ValueError, TypeError, EOFError, OSError):  # an earlier mutation's
            return
        if isinstance(values, np.ndarray):
            with np.errstate(all="ignore"):
                record[key] = Array(np.asarray(changed(values, what, where, value)))


def changed(values, what, where, value):
    if what == "reshape":
        return values.reshape(-1) if where % 2 else values[None]
    if what == "cut":
        return values[..., :-1] if values.ndim else values
    if what == "repeat":
        return np.concatenate([np.atleast_1d(values)] * 2)
    if what == "empty":
        return np.zeros((0, *values.shape[1:]), values.dtype)
    if what == "retype":
        try:
            return values.astype(value)
        except ValueError:  # text is no number
            return values
    if values.dtype.kind != "f":
        return values
    if what == "scale":
        return (values * value).astype(values.dtype)
    if what == "poison all":
        return np.full_like(values, value)
    values = values.copy()
    if values.size:
        values.flat[where % values.size] = value
    return values


def all_finite(value):
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    return all(all_finite(part) for part in value.values()) if isinstance(value, dict) else True
