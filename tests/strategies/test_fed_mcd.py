"""Fed-MCD: steps A on the server, B and C on a client, beside the same as plain loops."""

from __future__ import annotations

import pytest
import torch

from fedlab.errors import ConfigError
from fedlab.seeds import seeded
from fedlab.strategies.fed_mcd import TwoHeads, WithSecondHead
from tables import client_functions
from toy import Blobs, Net

BLOBS = Blobs(domains="a,b,c")


def two_heads(state):
    model = TwoHeads(Net().features, Net().head, Net().head)
    model.load_state_dict(state)
    return model


def apart(model, x):
    z = model.features(x)
    return (model.head(z).softmax(1) - model.second(z).softmax(1)).abs().sum(1).mean()


def descend(parameters, velocity, loss, rate=0.05):
    parameters = list(parameters)
    for weight, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        velocity[weight] = 0.9 * velocity.get(weight, 0) + gradient
        with torch.no_grad():
            weight.sub_(rate * velocity[weight])


def test_a_clients_steps_are_b_and_c(record, weighted_mean):
    seen, directory = record("fed_mcd", rounds=1, **{"client.steps": 7, "fed_mcd.generator_steps": 2})
    for client in range(3):
        one, x, velocity = seen["train", 1, client], BLOBS.data(client, "train")[:]["x"], {}
        model = two_heads(one.received["arrays"]).train()
        with seeded(5, "train", 1, client):
            Net(), Net()  # a client builds a model first
            for _ in range(7 // 3):
                batch = x[torch.randint(len(x), (16,))]
                descend([*model.head.parameters(), *model.second.parameters()], velocity, -apart(model, batch))
                for _ in range(2):
                    batch = x[torch.randint(len(x), (16,))]
                    descend(model.features.parameters(), velocity, apart(model, batch))
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(one.answered[name], tensor, rtol=0, atol=1e-6, msg=name)
    arrays = directory.checkpoints.latest()[1]["arrays"]
    for name, wanted in weighted_mean([seen["train", 1, client] for client in range(3)]).items():
        torch.testing.assert_close(arrays[name].double(), wanted, rtol=0, atol=1e-6)


def test_step_a_is_the_loss_of_both_heads_and_heads_differ():
    with seeded("heads"):
        model = WithSecondHead(BLOBS).model()
    batch = BLOBS.data(None, "train")[:8]
    z = model.features(batch["x"])
    both = sum(torch.nn.functional.cross_entropy(head(z), batch["y"]) for head in (model.head, model.second))
    torch.testing.assert_close(WithSecondHead(BLOBS).loss(model, batch), both)
    assert not torch.equal(model.head[0].weight, model.second[0].weight)
    with seeded("heads"):
        assert torch.equal(BLOBS.model().head[0].weight, model.head[0].weight)  # source_only's head


def test_it_predicts_with_the_mean_of_both_heads():
    model = WithSecondHead(BLOBS).model().eval()
    x = BLOBS.data(0, "test")[:5]["x"]
    z = model.features(x)
    mean = (model.head(z).softmax(1) + model.second(z).softmax(1)) / 2
    half = client_functions("fed_mcd")
    torch.testing.assert_close(half.predictor(BLOBS, {"arrays": model.state_dict()})(x).exp(), mean)


def test_too_few_steps_for_one_turn_are_refused(record):
    with pytest.raises(ConfigError, match=r"'client.steps' is 3, too few for one step B and 4 steps C"):
        record("fed_mcd", **{"client.steps": 3})
