"""A workload small enough to run a whole federation in milliseconds, with everything that the real ones have."""

from __future__ import annotations

from io import BytesIO

import torch
from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn.functional import cross_entropy

from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.metrics import FRACTION, Metric
from fedlab.training import null_progress
from fedlab.workload import Score, WorkloadSpec


class Net(nn.Module):
    """G with a batch norm, and F."""

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3) if linear else nn.Sequential(nn.Linear(8, 3))

    def forward(self, x):
        return self.head(self.features(x))


def blobs(count: int, shift: float, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (count,), generator=generator)
    x = torch.randn(count, 4, generator=generator) * 0.4 + torch.eye(4)[y] * 2 + shift
    return {"x": x, "y": y}


@dataclass(frozen=True)
class Blobs:
    """Three classes in four dimensions; each client's domain is shifted further."""

    domains: str = Field("near,far", description="names of the clients")
    client_labels: bool = Field(False, description="clients hold labels")
    headless: bool = Field(False, description="a model without features and head")
    linear: bool = Field(False, description="a head that is one linear layer itself")
    broken: int = Field(-1, description="partition whose training data raises when it is read")
    poison: bool = Field(False, description="the server's data holds values that are not finite")

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(name for name in self.domains.split(",") if name)

    def model(self):
        return nn.Linear(4, 3) if self.headless else Net(self.linear)

    def data(self, partition, split):
        columns = blobs(90, 0.0 if partition is None else 0.5 * (partition + 1), seed=7 if split == "train" else 8)
        if partition is None and self.poison:
            columns["x"][0] = float("nan")
        if partition is not None and split == "train" and not self.client_labels:
            del columns["y"]
        if partition is not None and split == "train" and partition == self.broken:
            return ArrayDataset(columns, self.fail)
        return ArrayDataset(columns)

    def loss(self, model, batch):
        return cross_entropy(model(batch["x"]), batch["y"])

    def view(self, x, weak=False):
        return x + (0.05 if weak else 0.3) * torch.randn_like(x)

    @torch.no_grad()
    def evaluate(self, model, data):
        model.eval()
        batch = data[:]
        logits = model(batch["x"])
        accuracy = float((logits.argmax(1) == batch["y"]).float().mean())
        return {"accuracy": accuracy, "loss": float(cross_entropy(logits, batch["y"]))}

    @staticmethod
    def fail(batch):
        raise OSError("the disk of this client is gone")


class Scribbler(Blobs):
    """Draws one square, whose shade says how large the model's first weights are."""

    def score(self, model, progress=null_progress):
        progress("drawing", 1, 1)
        size = float(next(model.parameters()).detach().abs().mean())
        return Score({"size": size}, {"gray_squares": square(size)})


def square(size):
    stream = BytesIO()
    Image.new("L", (8, 8), round(255 * min(size, 1))).save(stream, "PNG")
    return stream.getvalue()


SMALL = {
    "workload": "blobs",
    "threads": 1,
    "rounds": 3,
    "server.pretrain_steps": 6,
    "server.steps": 4,
    "server.batch_size": 16,
    "client.steps": 5,
    "client.batch_size": 16,
    "dualadapt.components": 2,
}
PLUGIN = {**SMALL, "workload": "toy:SPEC"}  # the same, found by any process that can import this module

ACCURACY = Metric("accuracy", unit=FRACTION, higher_is_better=True, confusion="accuracy")
SPEC = WorkloadSpec(Blobs, oracle_overrides={"blobs.client_labels": True}, metrics=(ACCURACY,))
SCRIBBLES = WorkloadSpec(Scribbler, primary_metric="size", metrics=(ACCURACY,))


def register(name="blobs", spec="toy:SPEC") -> None:
    """Put the workload into the table of a process that has no other purpose."""
    registry.WORKLOADS[name] = registry.Row(spec, "three classes in four dimensions")
    registry.forget()


def write_preset(folder, **changes):
    """A preset of this workload as a TOML file; returns its path as text. Its run has a page with ``report=True``."""
    from fedlab.config.sections import to_toml

    path = folder / "toy.toml"
    path.write_text(to_toml({**SMALL, "report": False, **changes}))
    return str(path)
