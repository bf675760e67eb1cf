"""Personalized source-free adaptation beside the same method as a plain loop."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedlab.losses.propagation import propagate_labels
from fedlab.seeds import seeded
from fedlab.strategies.client_adaptation.source_free import Options, adapt, adaptation_loss, most_confident
from fedlab.strategies.client_adaptation.spec import Client
from toy import Blobs

WORKLOAD = Blobs()
STEPS, EVERY, BATCH, RATE, DECAY, SHARE = 5, 2, 16, 0.02, 0.9, 0.5
CPU = torch.device("cpu")


@pytest.fixture
def client():
    with seeded("client"):
        model = WORKLOAD.model().eval()
    return Client(model.features, model.head, WORKLOAD.data(1, "train"), WORKLOAD.view, torch.clone, CPU)


def options(**changes):
    usual = {"steps": STEPS, "label_every": EVERY, "batch_size": BATCH, "learning_rate": RATE, "teacher_ema": DECAY}
    return Options(**{**usual, "bn_adaptation": SHARE, "weight_decay": 0.0, "guard": False, **changes})


def own_statistics(features, x, share):
    """Set the statistics of the one batch norm to a mean of the old ones and those of all inputs."""
    with torch.no_grad():
        z = features[1](features[0](x))
        features[2].running_mean.lerp_(z.mean(0), share)
        features[2].running_var.lerp_(z.var(0), share)


def balanced(p, turns=5):
    for _ in range(turns):
        p = p / p.sum(0)
        p = p / p.sum(1)[:, None]
    return p


def plain_loop(client):
    x, head = client.data[:]["x"], client.head
    student = deepcopy(client.features)
    own_statistics(student, x, SHARE)
    teacher, adam = deepcopy(student), torch.optim.Adam(student.parameters(), RATE)
    for step in range(STEPS):
        if step % EVERY == 0:
            if step:
                own_statistics(teacher, x, 1.0)
            with torch.no_grad():
                z = teacher.eval()(x)
                q = balanced(propagate_labels(z, balanced(head(z).softmax(1)), 10))
            best, label = q.max(1)
            weight = torch.zeros(len(x))
            for k in range(3):
                members = [row for row in best.argsort(descending=True).tolist() if label[row] == k]
                weight[members[: math.ceil(0.8 * len(members))]] = 1.0
        rows = torch.randint(len(x), (BATCH,))
        p = head(student.train()(WORKLOAD.view(x[rows]))).softmax(1)
        fit = -(weight[rows] * p[range(BATCH), label[rows]].log()).sum() / weight[rows].sum()
        certain = -(p * p.log()).sum(1).mean()
        diverse = -(p.mean(0) * p.mean(0).log()).sum()
        adam.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        adam.zero_grad()
        (fit + certain - diverse).backward()
        adam.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(DECAY).add_((1 - DECAY) * fast)
            for slow, fast in zip(teacher.buffers(), student.buffers(), strict=True):
                slow.copy_(fast)
    own_statistics(student, x, 1.0)
    return student


def test_it_is_the_plain_loop(client):
    before = deepcopy(client.features.state_dict())
    with seeded("adapt"):
        found = adapt(client, options()).features
    with seeded("adapt"):
        wanted = plain_loop(client).eval()
    x = client.data[:]["x"]  # features, since a batch norm takes away what the bias before it does
    torch.testing.assert_close(found(x), wanted(x), rtol=1e-3, atol=1e-4)
    assert (found(x) - client.features(x)).abs().max() > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in client.features.state_dict().items())


def test_it_learns_a_shifted_domain(client):
    with seeded("source"):
        model = WORKLOAD.model().train()
        adam, source = torch.optim.Adam(model.parameters(), 0.02), WORKLOAD.data(None, "train")
        for _ in range(5):
            adam.zero_grad()
            WORKLOAD.loss(model, source.sample_batch(32)).backward()
            adam.step()
    client = Client(model.features.eval(), model.head.eval(), client.data, client.view, torch.clone, CPU)
    with seeded("adapt"):
        new = adapt(client, options(steps=40, guard=True, min_agreement=0.0))
    test = WORKLOAD.data(1, "test")
    accuracies = [
        WORKLOAD.evaluate(torch.nn.Sequential(features, model.head), test)["accuracy"]
        for features in (client.features, new.features)
    ]
    assert accuracies[1] >= accuracies[0] + 0.1
    assert new.report["adapted"] == 1.0


def test_interpolated_weights_lie_between_those_of_both_and_get_the_clients_own_statistics(client):
    found = {}
    for share in (1.0, 0.25):
        with seeded("adapt"):
            found[share] = adapt(client, options(interpolation=share)).features
    sent, trained = dict(client.features.named_parameters()), dict(found[1.0].named_parameters())
    wanted = deepcopy(client.features)
    for name, weight in wanted.named_parameters():
        weight.data = 0.75 * sent[name].data + 0.25 * trained[name].data
    own_statistics(wanted, client.data[:]["x"], 1.0)
    x = client.data[:]["x"]
    torch.testing.assert_close(found[0.25](x), wanted.eval()(x))
    assert not torch.allclose(found[0.25](x), found[1.0](x))
    assert not found[0.25].training


def test_a_new_model_that_is_not_kept_is_not_interpolated(client):
    with seeded("adapt"):
        adapted = adapt(client, options(interpolation=0.5, guard=True, min_agreement=1.0, steps=40))
    assert adapted.report["adapted"] == 0.0
    assert adapted.features is client.features


@pytest.mark.parametrize(
    "off", [{"num_neighbors": 0}, {"balance_iterations": 0}, {"information": 0.0}, {"views": False}, {"confident": 1.0}]
)
def test_each_ingredient_can_be_left_out(client, off):
    found = []
    for changes in ({}, off):
        with seeded("adapt"):
            found.append(adapt(client, options(**changes)).features.state_dict())
    assert not torch.allclose(found[0]["1.weight"], found[1]["1.weight"])


def test_without_steps_only_the_statistics_move(client):
    found = adapt(client, options(steps=0)).features.state_dict()
    moved = {name for name, tensor in client.features.state_dict().items() if not torch.equal(tensor, found[name])}
    assert {"2.running_mean", "2.running_var"} <= moved <= {"2.running_mean", "2.running_var", "2.num_batches_tracked"}


def test_the_surest_of_each_class_count():
    weights = most_confident(torch.tensor([0.3, 0.9, 0.5, 0.4, 0.8]), torch.tensor([0, 0, 0, 2, 2]), 0.5)
    assert weights.tolist() == [0, 1, 1, 0, 1]


def test_an_example_without_weight_costs_nothing():
    logits, classes = torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 0])
    loss = adaptation_loss(logits, classes, torch.tensor([1.0, 0.0]), 0.0)
    assert float(loss) == pytest.approx(float(cross_entropy(logits[:1], classes[:1])))
    assert float(adaptation_loss(logits, classes, torch.zeros(2), 0.0)) == 0.0


def test_a_client_with_too_few_examples_keeps_the_model_that_was_sent_unless_the_guard_is_off(client):
    few = replace(client, data=client.data.subsample(32))  # of three classes
    guarded = adapt(few, options(guard=True, min_agreement=0.0))
    assert guarded.features is few.features
    assert guarded.report == {"adapted": 0.0}
    for changes in ({"guard": False}, {"guard": True, "min_agreement": 0.0, "min_examples_per_class": 10}):
        with seeded("adapt"):
            assert "agreement" in adapt(few, options(**changes)).report


def test_a_client_with_one_image_has_a_model_in_the_end(client):
    one = Client(client.features, client.head, client.data.select(torch.tensor([3])), client.view, torch.clone, CPU)
    with seeded("adapt"):
        adapted = adapt(one, options(guard=True, min_agreement=0.0, min_examples_per_class=0))
    assert all(tensor.isfinite().all() for tensor in adapted.features.state_dict().values())
