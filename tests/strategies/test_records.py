"""Records of messages: what is in them, read back as plain tensors and numbers."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlab.engines import flower_internals
from fedlab.strategies import records


def message(**content):
    identity = flower_internals.TaskIdentity
    identity.run_id, identity.node_id, identity.task_id = 1, 1, 1
    return Message(RecordDict(content), dst_node_id=1, message_type="train")


def test_tensors_and_round_of_a_message():
    sent = message(arrays=ArrayRecord({"w": torch.ones(2)}), config=ConfigRecord({records.ROUND: 3}))
    assert torch.equal(records.arrays_of(sent.content)["w"], torch.ones(2))
    assert records.round_of(sent) == 3
    with pytest.raises(KeyError):
        records.arrays_of(sent.content, "mixture")


@pytest.mark.parametrize(
    ("server_round", "config", "final"),
    [(2, {}, False), (3, {}, True), (2, {records.FINAL: True}, True), (2, {records.FINAL: False}, False)],
)
def test_the_last_round_is_the_planned_one_or_one_that_was_declared(server_round, config, final):
    assert records.is_final(server_round, 3, ConfigRecord(config)) == final


def test_metrics_are_numbers_with_the_number_of_examples():
    made = records.metrics_record(records.drop_none(loss=0.5, other=None), 7)
    assert dict(made) == {"loss": 0.5, "num-examples": 7}
    reply = message(metrics=MetricRecord({**made, "curve": [1.0, 2.0]}))
    assert records.client_metrics(reply) == {"loss": 0.5, "num-examples": 7.0}
