"""Floats on the wire: what comes back, how far it is from what was sent, and how many bytes it took."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from fedlab.comm import compression

FORMS = (compression.FLOAT32, compression.FLOAT16, compression.INT8)
S = compression.SEPARATOR


def content(**arrays):
    return RecordDict({"arrays": ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})})


def there(sent, form):
    return {name: array.numpy() for name, array in compression.decode(compression.encode(sent, form))["arrays"].items()}


def size(sent):
    return recorddict_to_proto(sent).ByteSize()


def coded(**parts):
    return RecordDict({"arrays": ArrayRecord({key.replace("__", S): Array(value) for key, value in parts.items()})})


@pytest.fixture
def some():
    draw = np.random.default_rng(3)
    return {
        "weight": draw.normal(size=(5, 7)).astype(np.float32),
        "filters": draw.normal(size=(4, 3, 2, 2)).astype(np.float32) * np.float32(50),
        "bias": draw.normal(size=9).astype(np.float32),
        "exact": draw.normal(size=(3, 6)),
        "scalar": np.float32(0.3),
        "steps": np.arange(12, dtype=np.int64).reshape(3, 4),
        "mask": np.array([[True, False]]),
    }


def test_float32_is_the_content_itself():
    sent = content(weight=np.ones((2, 2), np.float32))
    assert compression.encode(sent, compression.FLOAT32) is sent


@pytest.mark.parametrize("form", FORMS)
def test_names_their_order_types_and_shapes_come_back(some, form):
    back = there(content(**some), form)
    assert list(back) == list(some)
    for name, array in some.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape), name


@pytest.mark.parametrize("form", FORMS)
def test_integers_and_masks_are_never_touched(some, form):
    encoded = compression.encode(content(**some), form)["arrays"]
    for name in ("steps", "mask"):
        np.testing.assert_array_equal(encoded[name].numpy(), some[name])


def test_what_comes_back_of_full_precision_is_the_same_bits(some):
    for name, array in there(content(**some), compression.FLOAT32).items():
        np.testing.assert_array_equal(array, some[name])


def test_half_precision_is_off_by_at_most_half_a_step_of_half_precision(some):
    for name, array in there(content(**some), compression.FLOAT16).items():
        np.testing.assert_allclose(array, some[name], rtol=2.0**-11, atol=2.0**-25)


def test_bytes_are_off_by_at_most_half_a_scale_of_their_row(some):
    back = there(content(**some), compression.INT8)
    for name in ("weight", "filters", "exact"):
        rows = some[name].reshape(len(some[name]), -1).astype(np.float64)
        off = np.abs(back[name].reshape(rows.shape) - rows).max(1)
        assert (off <= np.abs(rows).max(1) / 127 / 2 * (1 + 1e-4)).all(), name
        assert off.any()
    np.testing.assert_allclose(back["bias"], some["bias"], rtol=2.0**-11, atol=2.0**-25)  # vectors: half precision


@pytest.mark.parametrize("form", [compression.FLOAT16, compression.INT8])
def test_the_second_crossing_of_half_precision_and_of_zeros_loses_nothing(form):
    zeros = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(there(content(a=zeros), form)["a"], zeros)
    halves = np.arange(5, dtype=np.float32) / 4
    np.testing.assert_array_equal(there(content(a=halves), form)["a"], halves)


@pytest.mark.parametrize("form", [compression.FLOAT16, compression.INT8])
@pytest.mark.parametrize("value", [65505.0, -1e30, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_what_half_precision_cannot_hold_is_sent_as_it_is(form, value, shape):
    array = np.full(shape, 0.1, np.float32)
    array[...] = value
    sent = content(a=array)
    assert list(compression.encode(sent, form)["arrays"]) == ["a"]
    np.testing.assert_array_equal(there(sent, form)["a"], array)


@pytest.mark.parametrize("form", [compression.FLOAT16, compression.INT8])
def test_the_largest_half_is_still_encoded(form):
    array = np.array([[65504.0, -65504.0]], np.float32)
    sent = content(a=array)
    assert "a" not in compression.encode(sent, form)["arrays"]
    np.testing.assert_allclose(there(sent, form)["a"], array, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 4), (3, 0), (0, 0), (0, 3, 2), (2, 0, 3)])
def test_arrays_without_dimensions_or_elements(form, dtype, shape):
    back = there(content(a=np.zeros(shape, dtype)), form)["a"]
    assert (back.dtype, back.shape) == (dtype, shape)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tiny", [1e-44, 1e-60, 5e-324])
def test_values_whose_scale_is_below_single_precision_become_zero(tiny):
    array = np.array([[0.0, tiny], [1.0, -1.0]])
    np.testing.assert_allclose(there(content(a=array), compression.INT8)["a"], array, atol=1e-38)


@pytest.mark.parametrize("form", FORMS)
def test_other_records_pass_through(form):
    config, metrics = ConfigRecord({"server-round": 3, "x": "y"}), MetricRecord({"loss": 0.1, "num-examples": 4})
    sent = RecordDict({"config": config, "arrays": ArrayRecord(), "metrics": metrics})
    encoded = compression.encode(sent, form)
    assert encoded["config"] is config and encoded["metrics"] is metrics
    back = compression.decode(encoded)
    assert back["config"] is config and back["metrics"] is metrics
    assert list(back) == ["config", "arrays", "metrics"] and not back["arrays"]


@pytest.mark.parametrize(
    ("form", "share"), [(compression.FLOAT32, 1.0), (compression.FLOAT16, 0.5), (compression.INT8, 0.25)]
)
def test_how_many_bytes_cross_the_wire(form, share):
    sent = content(weight=np.random.default_rng(0).normal(size=(100, 300)).astype(np.float32))
    assert size(compression.encode(sent, form)) / size(sent) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("form", [compression.FLOAT16, compression.INT8])
def test_encoding_leaves_what_is_sent_as_it_was(some, form):
    sent = content(**some)
    before = recorddict_to_proto(sent).SerializeToString(deterministic=True)
    compression.encode(sent, form)
    assert recorddict_to_proto(sent).SerializeToString(deterministic=True) == before


HALF, INT8, SCALES = np.zeros((2, 3), np.float16), np.zeros((2, 3), np.int8), np.ones(2, np.float32)
MALFORMED = {
    "one part too few": {"a__float16": HALF},
    "one part too many": {"a__float16__float32__x": HALF},
    "an unknown kind": {"a__int4__float32": INT8},
    "an unknown type": {"a__float16__object": HALF},
    "a type that is no float": {"a__float16__int64": HALF},
    "no scales": {"a__int8__float32": INT8},
    "scales of another type": {"a__int8__float32": INT8, "a__scale__float64": SCALES},
    "too many scales": {"a__int8__float32": INT8, "a__scale__float32": np.ones(3, np.float32)},
    "scales with two dimensions": {"a__int8__float32": INT8, "a__scale__float32": np.ones((2, 1), np.float32)},
    "scales that are text": {"a__int8__float32": INT8, "a__scale__float32": np.array(["1", "2"])},
    "scales that are complex": {"a__int8__float32": INT8, "a__scale__float32": np.ones(2, np.complex64)},
    "scales of nothing": {"a__scale__float32": SCALES},
    "bytes that are floats": {"a__int8__float32": HALF, "a__scale__float32": SCALES},
    "bytes with one dimension": {"a__int8__float32": np.zeros(2, np.int8), "a__scale__float32": SCALES},
    "halves that are text": {"a__float16__float32": np.array(["1", "2"])},
    "halves that are integers": {"a__float16__float32": INT8},
    "a name that comes twice": {"a": HALF, "a__float16__float32": HALF},
}


@pytest.mark.parametrize("parts", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_was_encoded_wrongly_is_refused(parts):
    with pytest.raises(ValueError, match="array 'a'"):
        compression.decode(coded(**parts))


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x93NUMPY\x01\x00\xff\xff"])
@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle"])
@pytest.mark.parametrize("key", [S.join(("a", "float16", "float32")), S.join(("a", "int8", "float32"))])
def test_bytes_that_are_no_array_are_refused(data, stype, key):
    broken = Array("float16", (2, 2), stype, data)
    record = ArrayRecord({key: broken, S.join(("b", "scale", "float32")): broken})
    if "int8" in key:
        record[S.join(("a", "scale", "float32"))] = Array(SCALES)
    with pytest.raises(ValueError, match="array 'a'"):
        compression.decode(RecordDict({"arrays": record}))
