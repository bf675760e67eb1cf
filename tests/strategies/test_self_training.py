"""Self-training: what a client trains on, and the round as a plain loop."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from fedlab.data.dataset import ArrayDataset
from fedlab.seeds import seeded
from fedlab.strategies.self_training import IGNORED, confident_rows, pseudo_labeled
from toy import Blobs

THRESHOLD = 0.4


def test_only_what_the_model_is_sure_of_is_labeled():
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    rows, labels = confident_rows(p, 0.8)
    assert rows.tolist() == [0, 2] and labels.tolist() == [0, 1]
    assert confident_rows(p, 0.0)[0].tolist() == [0, 1, 2, 3]
    assert len(confident_rows(p, 0.95)[0]) == 0


def test_rows_that_are_not_sure_are_left_out_of_an_example_that_has_a_sure_one():
    data = ArrayDataset({"x": torch.arange(3.0), "y": torch.zeros(3)})
    p = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]])  # two rows an example
    chosen, share = pseudo_labeled(data, p, 0.8)
    assert chosen.columns["x"].tolist() == [0, 2]
    assert chosen.columns["y"].tolist() == [[0, IGNORED], [1, 1]]
    assert share == 3 / 6
    loss = cross_entropy(torch.zeros(4, 2), chosen.columns["y"].flatten(), reduction="none")
    assert loss[1] == 0 and (loss[[0, 2, 3]] > 0).all()


def test_a_client_trains_on_its_pseudo_labels_and_the_server_averages(record, weighted_mean):
    seen, directory = record("self_training", rounds=1, **{"self_training.threshold": THRESHOLD})
    workload = Blobs(domains="a,b,c")
    for client in range(3):
        one, x = seen["train", 1, client], workload.data(client, "train")[:]["x"]
        model = workload.model()
        model.load_state_dict(one.received["arrays"])
        with torch.no_grad():
            best, labels = model.eval()(x).softmax(1).max(1)
        x, labels = x[best >= THRESHOLD], labels[best >= THRESHOLD]
        assert one.examples == len(x) < 90
        velocity = [torch.zeros_like(weight) for weight in model.parameters()]
        with seeded(5, "train", 1, client):
            for _ in range(5):
                rows = torch.randint(len(x), (16,))
                loss = cross_entropy(model.train()(x[rows]), labels[rows])
                gradients = torch.autograd.grad(loss, list(model.parameters()))
                with torch.no_grad():
                    for weight, speed, gradient in zip(model.parameters(), velocity, gradients, strict=True):
                        speed.mul_(0.9).add_(gradient)
                        weight.sub_(0.05 * speed)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(one.answered[name], tensor, rtol=0, atol=1e-6)
    arrays = directory.checkpoints.latest()[1]["arrays"]
    for name, wanted in weighted_mean([seen["train", 1, client] for client in range(3)]).items():
        torch.testing.assert_close(arrays[name].double(), wanted, rtol=0, atol=1e-6)


def test_a_client_that_is_sure_of_nothing_sends_back_what_it_got(record):
    seen, directory = record("self_training", rounds=1, **{"self_training.threshold": 0.9999})
    one = seen["train", 1, 0]
    assert all(torch.equal(one.answered[name], tensor) for name, tensor in one.received["arrays"].items())
    assert one.examples == 90
    assert not directory.rounds()[1]["failures"]


def test_labels_that_clients_have_are_not_looked_at(record):
    options = {"rounds": 1, "self_training.threshold": THRESHOLD}
    hashes = {
        record("self_training", **options, **{"blobs.client_labels": labeled})[1].manifest()["weights_sha256"]
        for labeled in (True, False)
    }
    assert len(hashes) == 1
