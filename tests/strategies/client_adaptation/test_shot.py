"""SHOT's labels by hand, and its training beside a plain loop."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedlab.seeds import seeded
from fedlab.strategies.client_adaptation.shot import Options, adapt, centroid_labels, nearest_centroids
from fedlab.strategies.client_adaptation.spec import Client
from toy import Blobs

WORKLOAD = Blobs()
CPU = torch.device("cpu")


@pytest.fixture
def client():
    with seeded("client"):
        model = WORKLOAD.model().eval()
    return Client(model.features, model.head, WORKLOAD.data(1, "train"), WORKLOAD.view, torch.clone, CPU)


def test_labels_are_those_of_the_nearest_centroid():  # of which the second example had another one
    z = torch.tensor([[3.0, 0.0], [2.0, 0.1], [0.0, 3.0], [0.3, 2.0]])
    p = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.1, 0.9, 0.0], [0.2, 0.8, 0.0]])
    everything = torch.ones(3, dtype=torch.bool)
    assert nearest_centroids(z, p, everything).tolist() == [0, 0, 1, 1]
    assert nearest_centroids(z, p, torch.tensor([False, True, True])).tolist() == [1, 1, 1, 1]


def plain_loop(client, epochs, rate, batch):
    features, x = deepcopy(client.features), client.data[:]["x"]
    sgd = torch.optim.SGD(features.parameters(), rate, momentum=0.9, weight_decay=1e-3, nesterov=True)
    epoch = round(len(x) / batch)
    for step in range(epochs * epoch):
        if step % epoch == 0:
            labels = centroid_labels(features, client.head, client)
        rows = torch.randint(len(x), (batch,))
        logits = client.head(features.train()(x[rows]))
        p, mean = logits.softmax(1), logits.softmax(1).mean(0)
        information = -(p * p.log()).sum(1).mean() + (mean * mean.log()).sum()
        sgd.param_groups[0]["lr"] = rate * (1 + 10 * step / (epochs * epoch)) ** -0.75
        sgd.zero_grad()
        (0.1 * cross_entropy(logits, labels[rows]) + information).backward()
        sgd.step()
    with torch.no_grad():
        z = features[1](features[0](x))
        features[2].running_mean.copy_(z.mean(0))
        features[2].running_var.copy_(z.var(0))
    return features.eval()


def test_it_is_the_plain_loop(client):
    with seeded("adapt"):
        found = adapt(client, Options(epochs=2, batch_size=30, learning_rate=0.1)).features
    with seeded("adapt"):
        wanted = plain_loop(client, 2, 0.1, 30)
    x = client.data[:]["x"]
    torch.testing.assert_close(found(x), wanted(x), rtol=1e-3, atol=1e-4)
    assert (found(x) - client.features(x)).abs().max() > 0.1
