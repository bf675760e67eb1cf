"""AdaContrast's labels and its contrast by hand, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.seeds import seeded
from fedlab.strategies.client_adaptation.adacontrast import Bank, Options, adapt, info_nce
from fedlab.strategies.client_adaptation.spec import Client
from toy import Blobs

WORKLOAD = Blobs()


def bank():
    """Four examples in two directions; their classes are 0, 0, 1, 1."""
    return Bank(torch.tensor([[2.0, 0.0], [3.0, 0.3], [0.0, 1.0], [0.1, 2.0]]), torch.eye(2)[[0, 0, 1, 1]])


def test_labels_are_those_of_the_nearest_in_the_bank():
    known = bank()
    z = torch.tensor([[5.0, 1.0], [1.0, 5.0]])
    assert known.labels(z, 2).tolist() == [0, 1]
    known.update(torch.tensor([0, 1]), known.z[:2], torch.eye(2)[[1, 1]])
    assert known.labels(z, 2).tolist() == [1, 1]
    assert known.labels(z, 99).tolist() == [1, 1]  # more neighbors than examples


def test_entries_of_the_same_label_are_no_negatives():
    z, label = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    found = info_nce(z, torch.tensor([[0.0, 1.0]]), label, bank(), 0.5)
    negatives = [0.0, 0.1 / math.hypot(0.1, 2.0)]  # of class 1
    assert float(found) == pytest.approx(math.log(1 + sum(math.exp(n / 0.5) for n in negatives)), rel=1e-5)


@pytest.mark.parametrize("changes", [{}, {"contrast": 0.0}, {"diversity": 0.0}])
def test_it_trains_a_copy_of_the_features(changes):
    with seeded("client"):
        model = WORKLOAD.model().eval()
    data = WORKLOAD.data(1, "train")
    client = Client(model.features, model.head, data, WORKLOAD.view, WORKLOAD.view, torch.device("cpu"))
    before, x = model.features(data[:]["x"]), data[:]["x"]
    with seeded("adapt"):
        found = adapt(client, Options(steps=5, batch_size=16, learning_rate=0.02, **changes)).features
    with seeded("adapt"):
        again = adapt(client, Options(steps=5, batch_size=16, learning_rate=0.02, **changes)).features
    assert torch.equal(found(x), again(x))
    assert (found(x) - before).abs().max() > 0.1
    assert torch.equal(model.features(x), before)
