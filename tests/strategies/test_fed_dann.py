"""Fed-DANN: a client's steps with both gradients taken apart by hand, and what the server sends and averages."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fedlab.seeds import seeded
from fedlab.strategies.fed_dann import Adversarial
from toy import Blobs, Net

BLOBS = Blobs(domains="a,b,c")


def adversarial(state):
    model = Adversarial(Net())
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_a_client_descends_with_d_and_ascends_with_g(record, weighted_mean, weight):
    seen, directory = record("fed_dann", rounds=1, **{"fed_dann.weight": weight, "fed_dann.source_features": 20})
    for client in range(3):
        one, x, velocity = seen["train", 1, client], BLOBS.data(client, "train")[:]["x"], {}
        model, z_source = adversarial(one.received["arrays"]).train(), one.received["features"]["z"]
        assert z_source.shape == (20, 8)
        features, judge = list(model.features.parameters()), list(model.discriminator.parameters())
        with seeded(5, "train", 1, client):
            Adversarial(Net())  # a client builds a model first
            for _ in range(5):
                source = z_source[torch.randint(20, (16,))]
                target = model.features(x[torch.randint(len(x), (16,))])
                of_source = -(1 - model.discriminator(source).sigmoid()).log().mean() / 2
                of_target = -model.discriminator(target).sigmoid().log().mean() / 2
                down = torch.autograd.grad(of_source + of_target, judge, retain_graph=True)
                up = torch.autograd.grad(of_target, features)
                for parameter, step in [*zip(judge, down, strict=True), *zip(features, up, strict=True)]:
                    signed = step if any(parameter is other for other in judge) else -weight * step
                    velocity[parameter] = 0.9 * velocity.get(parameter, 0) + signed
                    with torch.no_grad():
                        parameter.sub_(0.05 * velocity[parameter])
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(one.answered[name], tensor, rtol=0, atol=2e-6, msg=name)
            if name.startswith("head"):
                assert torch.equal(one.answered[name], one.received["arrays"][name])  # heads learn on the server
    arrays = directory.checkpoints.latest()[1]["arrays"]
    for name, wanted in weighted_mean([seen["train", 1, client] for client in range(3)]).items():
        torch.testing.assert_close(arrays[name].double(), wanted, rtol=0, atol=1e-6)


def test_features_are_those_of_source_examples_under_the_model_that_is_sent(record):
    seen, _ = record("fed_dann", rounds=2, **{"fed_dann.source_features": 30})
    for server_round in (1, 2):
        one = seen["train", server_round, 0].received
        model = adversarial(one["arrays"]).eval()
        with torch.no_grad():
            every = model.features(BLOBS.data(None, "train")[:]["x"])  # (90, 8)
        nearest = torch.cdist(one["features"]["z"], every, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert nearest.values.max() < 1e-5 and len(set(nearest.indices.tolist())) == 30
        assert torch.equal(one["features"]["z"], seen["train", server_round, 2].received["features"]["z"])
    first, second = (seen["train", number, 0].received["features"]["z"] for number in (1, 2))
    assert not torch.equal(first, second)


def test_a_discriminator_that_learns_nothing_yet_guesses(record):
    _, directory = record("fed_dann", rounds=1, **{"client.steps": 1, "fed_dann.weight": 0.0})
    events = map(json.loads, (directory.path / "events.jsonl").read_text().splitlines())
    told = [event["metrics"] for event in events if event["event"] == "client" and event["round"] == 1]
    losses = [metrics["loss"] for metrics in told if "accuracy" not in metrics]  # of training, not of testing
    assert len(losses) == 3
    assert all(loss == pytest.approx(math.log(2), abs=0.3) for loss in losses)
