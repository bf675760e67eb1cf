"""Tensors in records: the bytes and sizes of Flower's own arrays, by reference, and changes that are found."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedlab.comm.tensors import (
    RowTensors,
    TensorArray,
    WriteGuard,
    content_bytes,
    tensor_record,
    tensors_of,
    tensors_on_demand,
)
from fedlab.vectorized.stacked_states import StackedStates

STATES = {
    "floats": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(3)},
    "scalar": {"counter": torch.tensor(7)},
    "types": {
        "half": torch.ones(2, dtype=torch.float16),
        "mask": torch.ones(300, dtype=torch.bool),
        "byte": torch.ones(3, 1, 2, 1, dtype=torch.uint8),
        "double": torch.ones(1000, dtype=torch.float64),
    },
    "empty": {"none": torch.zeros(0, 4)},
    "nothing": {},
    "large": {"a long name, with an umlaut: ü": torch.zeros(300, 400)},
    "transposed": {"w": torch.arange(12.0).reshape(3, 4).T},
}


def both(state):
    rest = {"config": ConfigRecord({"server-round": 3}), "metrics": MetricRecord({"loss": 0.5, "num-examples": 12})}
    return [RecordDict({"arrays": record, **rest}) for record in (ArrayRecord(state), tensor_record(state))]


@pytest.mark.parametrize("name", STATES)
def test_on_the_wire_it_is_flowers_own_array(name):
    flowers, ours = both(STATES[name])
    assert recorddict_to_proto(ours) == recorddict_to_proto(flowers)
    assert ours.object_id == flowers.object_id


@pytest.mark.parametrize("name", STATES)
def test_sizes_are_counted_without_serializing(name):
    flowers, ours = both(STATES[name])
    size = recorddict_to_proto(flowers).ByteSize()
    assert content_bytes(ours) == size == content_bytes(flowers)
    assert all("bytes" not in array.__dict__ for array in ours["arrays"].values())


@pytest.mark.parametrize(
    "value",
    [
        *(0, 1, -1, 63, 64, -64, -65, 2**31, -(2**63), 2**63 - 1, 2**63, 0.0, -1.5, float("inf"), True, False),
        *("", "ä" * 70, b"", b"bytes", [], [1, 2], [0.5], ["a", ""], [True]),
    ],
)
def test_sizes_of_all_kinds_of_entries_are_those_of_the_serialized_record(value):
    content = RecordDict({"config": ConfigRecord({"key": value, "server-round": 3}), "empty": ConfigRecord()})
    if isinstance(value, int | float) and not isinstance(value, bool):
        content["metrics"] = MetricRecord({"value": value, "": 1})
    assert content_bytes(content) == recorddict_to_proto(content).ByteSize()


def test_a_reader_gets_the_tensor_itself_and_after_a_network_an_equal_one():
    record = tensor_record(STATES["floats"])
    first, second = tensors_of(record)["weight"], tensors_of(record)["weight"]
    assert first.data_ptr() == second.data_ptr()
    back = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": record})))["arrays"]
    assert torch.equal(tensors_of(back)["weight"], first)


def test_a_record_is_a_snapshot_unless_it_is_asked_not_to_be():
    weight = torch.zeros(2)
    snapshot, same = tensor_record({"w": weight}), tensor_record({"w": weight}, copy=False)
    weight += 1
    assert tensors_of(snapshot)["w"].tolist() == [0, 0] and tensors_of(same)["w"].tolist() == [1, 1]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))])
def test_a_copy_has_tensors_of_its_own(duplicate):
    array = tensor_record(STATES["floats"])["weight"]
    other = duplicate(array)
    assert isinstance(other, TensorArray) and torch.equal(other.tensor, array.tensor)
    other.tensor.zero_()
    assert array.tensor.sum() == 15


def test_a_change_in_place_is_found_by_name():
    content = RecordDict({"arrays": tensor_record(STATES["floats"]), "more": tensor_record(STATES["scalar"])})
    guard = WriteGuard([content, content])
    assert guard.changed() == []
    tensors_of(content["arrays"])["bias"].add_(1)
    assert guard.changed() == ["arrays/bias"]


# --- rows of a stack ---


def stacked():
    return StackedStates({"w": torch.arange(24.0).reshape(3, 4, 2).mT, "n": torch.arange(3)})


@pytest.mark.parametrize("row", [0, 2])
def test_a_row_of_a_stack_is_flowers_own_array_too(row):
    states = stacked()
    flowers = RecordDict({"arrays": ArrayRecord({name: tensor.clone() for name, tensor in states[row].items()})})
    ours = RecordDict({"arrays": tensor_record(states[row])})
    assert content_bytes(ours) == content_bytes(flowers)
    assert all("tensor" not in array.__dict__ for array in ours["arrays"].values())
    assert recorddict_to_proto(ours) == recorddict_to_proto(flowers)


def test_a_row_is_made_when_it_is_read_and_once():
    record = tensor_record(stacked()[1])
    found = tensors_on_demand(record)
    assert isinstance(found, RowTensors) and found.row == 1 and list(found) == ["w", "n"] and len(found) == 2
    assert "tensor" not in record["w"].__dict__
    assert torch.equal(found["w"], stacked().arrays["w"][1]) and found["w"] is found["w"]
    assert tensors_of(record)["w"] is found["w"]
    assert found["w"].untyped_storage().nbytes() == found["w"].nbytes


def test_a_row_is_pickled_alone():
    record = tensor_record(stacked()[1])
    copied = pickle.loads(pickle.dumps(record["w"]))
    assert torch.equal(copied.tensor, record["w"].tensor) and copied.tensor.untyped_storage().nbytes() == 32


@pytest.mark.parametrize("change", ["added", "replaced", "of another row", "removed", "exchanged"])
def test_a_record_that_was_changed_is_no_row_of_a_stack(change):
    states = stacked()
    record = tensor_record(states[1])
    if change == "removed":
        del record["n"]
    elif change == "of another row":
        record["n"] = tensor_record(states[2])["n"]
    elif change == "exchanged":
        record["w"], record["n"] = record["n"], record["w"]
    else:
        record["more" if change == "added" else "n"] = TensorArray(torch.ones(2))
    found = tensors_on_demand(record)
    assert isinstance(found, dict) and found.keys() == record.keys()
    assert torch.equal(found["n" if change == "exchanged" else "w"], states[1]["w"])
