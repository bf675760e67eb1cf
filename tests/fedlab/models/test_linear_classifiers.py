"""All heads of a batch of episodes at once, beside one torch.optim.SGD on one nn.Linear after another."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedlab.models.linear_classifiers import (
    PUBLISHED,
    ClassifierTraining,
    fit_linear_classifiers,
    init_classifiers,
    prototype_logits,
)
from fedlab.seeds import seeded


def plain_loop(support, labels, query, start, training):
    """The published evaluation: an optimizer for each episode."""
    found = []
    for episode in range(len(support)):
        head = nn.Linear(support.shape[2], start.bias.shape[1])
        with torch.no_grad():
            head.weight.copy_(start.weight[episode])
            head.bias.copy_(start.bias[episode])
        optimizer = torch.optim.SGD(
            head.parameters(),
            training.learning_rate,
            momentum=training.momentum,
            dampening=training.dampening,
            weight_decay=training.weight_decay,
        )
        for order in start.orders[:, episode]:
            for rows in order.split(training.batch):
                optimizer.zero_grad()
                cross_entropy(head(support[episode, rows]), labels[rows]).backward()
                optimizer.step()
        found.append(head(query[episode]).detach())
    return torch.stack(found)


def features(episodes, ways, shots, queries, width):
    centers = torch.randn(episodes, ways, width)
    labels = torch.arange(ways)
    support = centers.repeat_interleave(shots, 1) + torch.randn(episodes, ways * shots, width)
    query = centers.repeat_interleave(queries, 1) + torch.randn(episodes, ways * queries, width)
    return support.relu(), labels.repeat_interleave(shots), query.relu()


@pytest.mark.parametrize(
    ("ways", "shots", "training"),
    [
        (5, 1, PUBLISHED),
        (5, 5, ClassifierTraining(epochs=30)),  # the last batch of an epoch is smaller
        (
            3,
            2,
            ClassifierTraining(epochs=40, batch=5, learning_rate=0.1, momentum=0.5, dampening=0.2, weight_decay=0.05),
        ),
    ],
)
def test_it_is_the_plain_loop(ways, shots, training):
    torch.manual_seed(0)
    support, labels, query = features(3, ways, shots, 4, 24)
    start = init_classifiers(3, ways, ways * shots, 24, training.epochs)
    ours = fit_linear_classifiers(support, labels, query, start, training)
    torch.testing.assert_close(ours, plain_loop(support, labels, query, start, training), atol=1e-4, rtol=0)
    assert ours.std() > 0.1


def test_an_episode_does_not_depend_on_its_neighbors():
    torch.manual_seed(1)
    support, labels, query = features(4, 5, 1, 2, 16)
    start = init_classifiers(4, 5, 5, 16)
    alone = fit_linear_classifiers(
        support[2:3], labels, query[2:3], type(start)(start.weight[2:3], start.bias[2:3], start.orders[:, 2:3])
    )
    torch.testing.assert_close(fit_linear_classifiers(support, labels, query, start)[2:3], alone)


def test_a_start_is_the_one_of_nn_linear_from_the_ambient_stream():
    with seeded("a"):
        start = init_classifiers(300, 5, 7, 16, epochs=2)
    with seeded("a"):
        assert torch.equal(init_classifiers(300, 5, 7, 16, epochs=2).weight, start.weight)
    reference = nn.Linear(16, 24000 // 16)
    for ours, theirs in ((start.weight, reference.weight), (start.bias, reference.bias)):
        assert float(ours.abs().max()) <= 0.25
        assert float(ours.std()) == pytest.approx(float(theirs.detach().std()), rel=0.05)
    assert torch.equal(start.orders.sort(2).values, torch.arange(7).expand(2, 300, 7))


def test_prototypes_by_hand():
    support = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [5.0, 0.0], [5.0, 2.0]]])
    query = torch.tensor([[[1.0, 1.0], [5.0, 1.0]]])
    torch.testing.assert_close(prototype_logits(support, query, 2), torch.tensor([[[-1.0, -16.0], [-17.0, 0.0]]]))
