"""Records that a worker of the Ray engine sends: large ones are put into the object store once."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedlab.comm.tensors import tensor_record, tensors_of
from fedlab.engines import ray_workers
from fedlab.engines.packing import unpack
from fedlab.engines.ray_workers import KEPT_RECORDS, SentRecords


@pytest.fixture
def put(monkeypatch):
    """What was put into the object store; a reference is its number."""
    found = []

    def put(packed):
        found.append(packed)
        return len(found) - 1

    monkeypatch.setattr(ray_workers.ray, "put", put)
    return found


def large(value):
    return tensor_record({"w": torch.full((30_000,), float(value))})


def test_what_several_clients_are_sent_is_packed_once(put):
    sent, model = SentRecords(), large(1)
    for client in range(3):
        own = tensor_record({"head": torch.full((10,), float(client))})
        shared, head, config = sent.parts(
            RecordDict({"arrays": model, "head": own, "config": ConfigRecord({"round": 1})})
        )
        assert shared == 0
        assert tensors_of(unpack(*head)["head"])["head"].tolist() == [client] * 10
        assert unpack(*config)["config"]["round"] == 1
    (packed,) = put
    assert torch.equal(tensors_of(unpack(*packed)["arrays"])["w"], torch.ones(30_000))


def test_a_record_with_two_names_arrives_under_both(put):
    model = large(1)
    parts = SentRecords().parts(RecordDict({"arrays": model, "teacher": model}))
    assert [list(unpack(*put[part])) for part in parts] == [["arrays"], ["teacher"]]


def test_the_newest_records_stay_and_one_that_is_used_is_new(put):
    sent, model = SentRecords(), large(0)
    for value in range(2 * KEPT_RECORDS):
        sent.parts(RecordDict({"arrays": model, "own": large(value)}))
    assert len(put) == 1 + 2 * KEPT_RECORDS  # the model once, and each client's own
    assert len(sent._kept) == KEPT_RECORDS
