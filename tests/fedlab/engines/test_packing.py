"""Records between processes: what comes out is what went in, by value or mapped from memory that others share."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlab.comm.tensors import tensor_record, tensors_of
from fedlab.engines.packing import SharedRecord, map_record, pack, unpack

STATE = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "counter": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "half": torch.ones(3, dtype=torch.float16),
    "none": torch.zeros(0, 4),
}


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_content_comes_out_as_it_went_in():
    content = RecordDict(
        {
            "arrays": tensor_record(STATE),
            "flowers": ArrayRecord({"w": Array(np.arange(3.0))}),
            "config": ConfigRecord({"server-round": 3, "name": "a", "raw": b"\0"}),
            "metrics": MetricRecord({"loss": 0.5, "list": [1, 2]}),
            "more": tensor_record({"w": torch.full((100,), 2.0)}),
        }
    )
    back = unpack(*pack(content))
    assert list(back) == list(content)
    same(tensors_of(back["arrays"]), STATE)
    same(tensors_of(back["more"]), {"w": torch.full((100,), 2.0)})
    assert back["flowers"] == content["flowers"]
    assert (back["config"], back["metrics"]) == (content["config"], content["metrics"])


@pytest.mark.parametrize("state", [STATE, {}, {"none": torch.zeros(0)}], ids=["arrays", "nothing", "empty"])
def test_a_shared_record_is_mapped_and_a_change_stays_with_who_made_it(state):
    shared = SharedRecord(tensor_record(state))
    first, second = (tensors_of(map_record(shared.described, shared.file.fileno())) for _ in range(2))
    same(first, state)
    for tensor in first.values():
        tensor.zero_()
    same(second, state)
    shared.close()
    same(second, state)  # what is mapped stays


def test_a_closed_record_leaves_no_file():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    SharedRecord(tensor_record(STATE)).close()
    assert not before or len(os.listdir("/proc/self/fd")) == before
