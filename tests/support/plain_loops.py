"""Federations of the toy workload as plain torch loops: rounds, batches and SGD, without Flower."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from fedlab.seeds import seeded
from toy import Blobs

SEED, STEPS, BATCH, RATE, MOMENTUM = 5, 5, 16, 0.05, 0.9
CLIENTS = "abc"
COHORTS = ((0, 1, 2), (1, 2), (0, 1, 2))  # the first client takes part in rounds 1 and 3 only
WORKLOAD = Blobs(domains=",".join(CLIENTS), client_labels=True)


def options(folder, **changes):
    """Options of a run that the loops describe, with a schedule of the cohorts."""
    path = folder / "cohorts.txt"
    path.write_text("".join(",".join(CLIENTS[client] for client in cohort) + "\n" for cohort in COHORTS))
    return {"rounds": len(COHORTS), "schedule": str(path), "checkpoint.keep": 9, **changes}


def start_of(directory):
    """The arrays before round 1."""
    return directory.checkpoints.load(0)["arrays"]


def result_of(directory):
    """The arrays after the last round."""
    return directory.checkpoints.latest()[1]["arrays"]


def federate(start, client, server=None):
    """The global arrays after all cohorts.

    ``client(partition, model)`` trains a model that has the global arrays and returns what it sends; ``server(arrays,
    sent, cohort)`` returns the next arrays, the mean where there is none.
    """
    arrays = dict(start)
    for number, cohort in enumerate(COHORTS, 1):
        sent = []
        for partition in cohort:
            with seeded(SEED, "train", number, partition):
                sent.append(client(partition, model_of(arrays).train()))
        arrays = server(arrays, sent, cohort) if server else {**arrays, **mean(sent)}
    return arrays


def model_of(arrays):
    """A model with these arrays; nothing is drawn from the current stream."""
    with seeded("weights that are replaced"):
        model = WORKLOAD.model()
    model.load_state_dict(arrays)
    return model


def mean(states):
    """The mean of arrays by name; all clients have 90 examples. The largest of counters."""
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return {name: value.mean(0) if value.is_floating_point() else value.amax(0) for name, value in stacked.items()}


def batches(partition, steps=STEPS):
    """Inputs and labels of each step, drawn from the current stream."""
    columns = WORKLOAD.data(partition, "train").columns
    for _ in range(steps):
        rows = torch.randint(90, (BATCH,))
        yield columns["x"][rows], columns["y"][rows]


def sgd(weights):
    return torch.optim.SGD(list(weights), lr=RATE, momentum=MOMENTUM)


def classification(model, x, y):
    return cross_entropy(model(x), y)


def fit(model, partition, steps=STEPS, weights=None, loss=classification, penalty=lambda model: 0.0):
    """Train a model in place on ``loss(model, x, y)`` and ``penalty(model)``; return its state."""
    optimizer = sgd(model.parameters() if weights is None else weights)
    for x, y in batches(partition, steps):
        optimizer.zero_grad()
        (loss(model, x, y) + penalty(model)).backward()
        optimizer.step()
    return state_of(model)


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def accuracy(arrays, partition):
    """The accuracy of a model on a client's test data."""
    return WORKLOAD.evaluate(model_of(arrays), WORKLOAD.data(partition, "test"))["accuracy"]


def assert_close(found, wanted):
    """Both have the same arrays, to a relative tolerance of 1e-5."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def differ(first, second, tolerance=1e-3):
    """True if some array differs by more than the tolerance."""
    return any(
        (first[name] - second[name]).abs().max() > tolerance for name in first if first[name].is_floating_point()
    )
