"""Straight lines: a workload whose loss has a gradient by hand, and a federation of it through the real two apps."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn.functional import mse_loss

from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.runs.directory import RunDirectory
from fedlab.workload import WorkloadSpec
from tables import lead, put
from toy import SMALL as TOY
from toy import SPEC as TOY_SPEC

ROWS = (6, 9, 15)  # training examples of each client
SLOPES = ((1.0, -1.0), (2.0, 0.5), (-1.0, 1.0))  # each client's own line
SMALL = {
    "workload": "lines",
    "device": "cpu",
    "threads": 1,
    "rounds": 2,
    "seed": 5,
    "server.pretrain_steps": 0,
    "server.steps": 4,
    "server.batch_size": 8,
    "server.learning_rate": 0.05,
    "server.pretrain_learning_rate": 0.05,
    "server.ema_decay": 0.6,
    "client.steps": 5,
    "client.batch_size": 4,
    "client.learning_rate": 0.05,
}


@dataclass(frozen=True)
class Lines:
    """Linear regression in two dimensions; ``labeled`` says whether clients train on y, ``teacher`` the server."""

    labeled: bool = True
    teacher: bool = True

    @property
    def clients(self) -> tuple[str, ...]:
        return "a", "b", "c"

    def model(self):
        return nn.Linear(2, 1)

    def data(self, partition, split):
        count = 20 if partition is None else ROWS[partition] if split == "train" else 3 + partition
        slope = torch.tensor((0.3, 0.7) if partition is None else SLOPES[partition])
        generator = torch.Generator().manual_seed(10 * (-1 if partition is None else partition) + len(split))
        x = torch.randn(count, 2, generator=generator)
        columns = {"x": x, "y": x @ slope[:, None] + 0.5}
        if split == "train" and not (self.teacher if partition is None else self.labeled):
            del columns["y"]
        return ArrayDataset(columns)

    def loss(self, model, batch):
        return mse_loss(model(batch["x"]), batch["y"])

    @torch.no_grad()
    def evaluate(self, model, data):
        return {"loss": float(mse_loss(model(data[:]["x"]), data[:]["y"]))}


@plain_dataclass
class Outcome:
    """Weights (slope, slope, intercept) at the end, the state they came from, and the lines of ``metrics.jsonl``."""

    weights: np.ndarray
    arrays: dict[str, torch.Tensor]
    rounds: list[dict]
    manifest: dict


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def table(monkeypatch):
    """Configuration of one strategy on the lines; changes that are not options of it are refused."""
    put(monkeypatch, "workload", "lines", WorkloadSpec(Lines))

    def make(strategy, **changes):
        return registry.load_config({**SMALL, "strategy": strategy, "name": "lines"}, changes)

    return make


@pytest.fixture
def federate(tmp_path, table):
    """One run through fedlab.server.app and fedlab.client.app on the in-process engine."""

    def run(strategy, **changes):
        directory = RunDirectory.create(tmp_path, table(strategy, **changes))
        lead(directory)
        arrays = directory.checkpoints.latest()[1]["arrays"]
        weights = np.append(arrays["weight"].double().numpy(), arrays["bias"].double().numpy())
        return Outcome(weights, arrays, directory.rounds(), directory.manifest())

    return run


@pytest.fixture
def matrices(lines):
    """Inputs with a column of ones (rows, 3) and outputs (rows,) of one owner, as float64."""

    def read(partition, split="train"):
        columns = lines.data(partition, split).columns
        x = columns["x"].double().numpy()
        return np.column_stack([x, np.ones(len(x))]), columns["y"].double().numpy()[:, 0]

    return read


@pytest.fixture
def fresh(lines):
    """Weights (3,) of a new model from torch's current random stream."""

    def draw():
        model = lines.model()
        return np.append(model.weight.detach().double().numpy(), model.bias.detach().double().numpy())

    return draw


@plain_dataclass
class Exchange:
    """What one client got and answered in one round of training, or got in order to be tested."""

    received: dict[str, dict[str, torch.Tensor]]  # record name -> arrays
    answered: dict[str, torch.Tensor]
    examples: int


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A federation of the toy workload through both apps, and every exchange by (purpose, round, partition)."""
    put(monkeypatch, "workload", "blobs", TOY_SPEC)

    def run(strategy, **changes):
        entry, seen = registry.find("strategy", strategy).spec, {}
        workload_options = {"blobs.domains": "a,b,c", "blobs.client_labels": entry.needs_client_labels}
        usual = {key: value for key, value in TOY.items() if not key.startswith("dualadapt")}
        usual |= {"seed": 5, "device": "cpu", "name": "toy", "rounds": 2, "client.learning_rate": 0.05}
        config = registry.load_config({**usual, "strategy": strategy, **workload_options}, changes)

        def watched(purpose, half):
            def answer(workload, message, context):
                received = {
                    name: dict(arrays.to_torch_state_dict()) for name, arrays in message.content.array_records.items()
                }
                content = half(workload, message, context)
                arrays = content.array_records.get("arrays")
                seen[purpose, message.content["config"]["server-round"], context.partition] = Exchange(
                    received,
                    dict(arrays.to_torch_state_dict()) if arrays else {},
                    content["metrics"]["num-examples"],
                )
                return content

            return answer

        client = replace(
            entry.client,
            train=watched("train", entry.client.train),
            evaluate=watched("evaluate", entry.client.evaluate),
        )
        put(monkeypatch, "strategy", strategy, replace(entry, client=client))
        directory = RunDirectory.create(tmp_path, config)
        lead(directory)
        put(monkeypatch, "strategy", strategy, entry)
        return seen, directory

    return run


def weighted_mean(exchanges):
    """Float arrays of some clients, weighted by their examples."""
    total = sum(one.examples for one in exchanges)
    names = [name for name, array in exchanges[0].answered.items() if array.is_floating_point()]
    return {name: sum(one.examples / total * one.answered[name].double() for one in exchanges) for name in names}


@pytest.fixture(name="weighted_mean")
def give_weighted_mean():
    return weighted_mean
