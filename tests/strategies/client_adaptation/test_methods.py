"""Checks that hold for every method of adaptation on the client."""

from __future__ import annotations

import pytest
import torch

from fedlab.precision import computing_in
from fedlab.seeds import seeded
from fedlab.strategies.client_adaptation import adacontrast, shot, source_free
from fedlab.strategies.client_adaptation.spec import Client
from toy import Blobs

CPU = torch.device("cpu")
METHODS = {
    "source_free": (source_free, {"steps": 5, "label_every": 2, "batch_size": 16, "guard": False}),
    "shot": (shot, {"epochs": 2, "batch_size": 16}),
    "adacontrast": (adacontrast, {"steps": 4, "batch_size": 16}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_in_bf16_and_labels_in_float32(name):
    method, given = METHODS[name]
    workload = Blobs()
    with seeded("client"):
        model = workload.model().eval()
    client = Client(model.features, model.head, workload.data(1, "train"), workload.view, torch.clone, CPU)
    with computing_in("bf16", CPU), seeded("adaptation"):
        found = method.adapt(client, method.Options(**given))
    before = dict(model.features.named_parameters())
    for weight_name, weight in found.features.named_parameters():
        assert weight.dtype == torch.float32
        assert weight.isfinite().all()
        assert not torch.equal(weight, before[weight_name])
