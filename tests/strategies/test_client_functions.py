"""Defaults of a strategy's client side: it is tested with, and predicts with, the model that was sent."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedlab import registry
from fedlab.engines import flower_internals
from fedlab.errors import IncompatibleWeightsError
from fedlab.strategies import client_functions
from fedlab.strategies.protocol import ClientContext
from toy import SMALL, Blobs


@pytest.fixture
def context():
    return ClientContext(0, registry.load_config({**SMALL, "workload": "digits", "strategy": "fedavg"}))


def message(state):
    content = RecordDict({"arrays": ArrayRecord(state), "config": ConfigRecord({"server-round": 1})})
    identity = flower_internals.TaskIdentity
    identity.run_id, identity.node_id, identity.task_id = 1, 1, 1
    return Message(content, dst_node_id=1, message_type="evaluate")


def test_evaluation_is_the_workload_s_on_the_client_s_test_data(context):
    model = Blobs().model()
    reply = client_functions.evaluate(Blobs(), message(model.state_dict()), context)
    test = client_functions.client_dataset(Blobs(), context, "test")
    wanted = Blobs().evaluate(model, test)
    assert dict(reply["metrics"]) == pytest.approx({**wanted, "num-examples": len(test)})


def test_a_client_predicts_with_the_model_that_was_sent_and_a_checkpoint_has_the_same(context):
    state = Blobs().model().state_dict()
    sent = client_functions.from_message(Blobs(), message(state), context)
    kept = client_functions.from_checkpoint(Blobs(), {"arrays": state}, 0, context.config)
    x = Blobs().data(0, "test").columns["x"]
    one, other = (client_functions.full_model(Blobs(), states)(x) for states in (sent, kept))
    assert torch.equal(one, other)
    assert client_functions.no_example_weights({}, 0, x) is None


def test_weights_of_another_model_are_refused(context):
    with pytest.raises(IncompatibleWeightsError, match="another model than Net: .* the first is 'features.1.bias'"):
        client_functions.evaluate(Blobs(), message({"w": torch.ones(1)}), context)
