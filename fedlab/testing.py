"""Contract tests: what every workload owes the strategies, and every strategy the workloads.

A plug-in's own tests call them::

    from fedlab.testing import check_strategy, check_workload

    def test_it_keeps_the_contract():
        check_workload(MyTask())

They raise ``AssertionError`` with a sentence that says what came and what was expected.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab import api, launch
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.errors import RunError
from fedlab.plugins import reference_to
from fedlab.registry import find
from fedlab.runs.checkpoints import weights_sha256
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from fedlab.seeds import seeded
from fedlab.strategies.protocol import ClientContext, StrategySpec, arrays_of
from fedlab.workload import Workload, missing_columns
from fedlab.workload import spec_of as workload_spec

FEW, SPLITS = 16, ("train", "test")
QUICK: Mapping[str, Any] = {
    "rounds": 2,
    "threads": 1,
    "server.pretrain_steps": 4,
    "server.steps": 3,
    "server.batch_size": 16,
    "client.steps": 6,
    "client.batch_size": 16,
}


def check_workload(workload: object) -> None:
    """Check a workload: a WorkloadSpec, its class, or an object.

    Its clients have names, a model is a function of the random stream, data come for server and clients, the loss is a
    finite scalar with a gradient for every weight, metrics are plain numbers, and a federation of one round gives the
    same bits twice.

    Raises
    ------
    AssertionError, ConfigError
        With what is wrong.
    """
    spec = workload_spec(workload, "the workload")
    made: Workload = spec.workload() if isinstance(spec.workload, type) else spec.workload
    names = made.clients
    _require(names and len(set(names)) == len(names), f"clients are {names!r}; distinct names are expected")
    _require(all(isinstance(name, str) for name in names), f"clients are {names!r}; names are text")
    model = _check_model(made)
    for partition in (None, *range(len(names))):
        for split in SPLITS:
            _check_data(made, partition, split)
    _check_loss(made, model)
    _check_metrics(made, model)
    labeled = not missing_columns(made, made.data(0, "train"))
    with tempfile.TemporaryDirectory() as folder:
        _twice(Path(folder), {"strategy": "fedavg" if labeled else "source_only"}, workload)


def _check_model(workload: Workload) -> nn.Module:
    found = []
    for _ in range(2):
        with seeded("contract"):
            found.append(workload.model())
    _require(found[0] is not found[1], "model() returned one object twice; a fresh model is expected each time")
    same = weights_sha256(found[0].state_dict()) == weights_sha256(found[1].state_dict())
    _require(same, "model() gave two results from one random stream; draw weights from torch's generator only")
    return found[0]


def _check_data(workload: Workload, partition: int | None, split: str) -> None:
    where = f"data({partition}, {split!r})"
    data = workload.data(partition, split)
    _require(len(data) > 0, f"{where} is empty")
    first, second = (data[torch.arange(min(FEW, len(data)))] for _ in range(2))
    for name in first:
        _require(isinstance(first[name], Tensor), f"{where}: column {name!r} is no tensor")
        _require(first[name].shape == second[name].shape, f"{where}: column {name!r} changed its shape")
        _require(bool(torch.isfinite(first[name]).all()), f"{where}: column {name!r} has values that are not finite")


def _check_loss(workload: Workload, model: nn.Module) -> None:
    data = workload.data(None, "train")
    missing = missing_columns(workload, data)
    _require(not missing, f"the server's training data lacks {', '.join(missing)}, which the loss takes")
    with seeded("loss"):
        value = workload.loss(model.train(), data.sample_batch(FEW))
    _require(value.shape == (), f"the loss has shape {tuple(value.shape)}; a scalar is expected")
    _require(math.isfinite(value.item()), f"the loss is {value.item()}")
    value.backward()  # type: ignore[no-untyped-call]
    bare = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    _require(not bare, f"the loss gives no gradient for {', '.join(bare)}")


def _check_metrics(workload: Workload, model: nn.Module) -> None:
    for partition in (None, 0):
        data = workload.data(partition, "test")
        before = weights_sha256(model.state_dict())
        metrics = workload.evaluate(model, data)
        plain = all(type(value) is float and math.isfinite(value) for value in metrics.values())
        _require(plain, f"evaluate returned {metrics!r}; plain finite floats by name are expected")
        _require(weights_sha256(model.state_dict()) == before, "evaluate changed the model's weights")
        _require(workload.evaluate(model, data) == metrics, "evaluate gave two results for one model")


def check_strategy(strategy: object) -> None:
    """Check a strategy: a StrategySpec, or an AggregationSpec, which is a strategy with FedAvg's clients.

    A federation of two rounds ends with finite metrics, gives the same bits twice and when it is resumed after its
    first round, and a client whose arrays are not finite is refused and does not stop the others.

    Raises
    ------
    AssertionError, ConfigError
        With what is wrong.
    """
    reference, _ = reference_to("strategy", strategy)
    spec: StrategySpec = find("strategy", reference).spec
    options = {"strategy": reference}
    workload = Blobs(client_labels=spec.needs_client_labels)
    with tempfile.TemporaryDirectory() as folder:
        whole = _twice(Path(folder), options, workload)
        _check_resume(whole)
        trained = any(sum(one["train_up"] for one in record["bytes"].values()) for record in whole.rounds)
        if trained:
            _check_refusal(Path(folder), spec, workload)


def _twice(folder: Path, options: Mapping[str, Any], workload: object) -> Result:
    """One federation, run twice to the same bits."""
    first, second = (
        api.run({**QUICK, "name": name, **options, "checkpoint.keep": 9}, workload=workload, runs=folder)
        for name in ("first", "second")
    )
    for record in first.rounds:
        bad = {name: value for name, value in record["mean"].items() if not math.isfinite(value)}
        _require(not bad, f"round {record['round']} has metrics that are not finite: {bad}")
    same = first.weights_sha256 == second.weights_sha256
    _require(same, "the same run gave two results; draw random numbers from torch's generator, in a fixed order")
    return first


def _check_resume(whole: Result) -> None:
    """A run that was stopped after its first round ends at the same bits."""
    path = whole.directory.with_name("resumed")
    shutil.copytree(whole.directory, path)
    directory = RunDirectory.open(path)
    directory.checkpoints.path(2).unlink()
    directory.update_manifest(status="interrupted")
    resumed = launch.resume(path)
    same = resumed.weights_sha256 == whole.weights_sha256
    _require(same, "a resumed run gave another result; state() must return all that lives from round to round")


def _check_refusal(folder: Path, spec: StrategySpec, workload: object) -> None:
    """An update with values that are not finite is refused, and the others are used."""

    def broken(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
        content = spec.client.train(workload, message, context)
        name = next((name for name, record in content.items() if isinstance(record, ArrayRecord)), None)
        if context.partition == 0 and name is not None:
            nan = {key: torch.full_like(value.float(), math.nan) for key, value in arrays_of(content, name).items()}
            content[name] = ArrayRecord(nan)
        return content

    hostile = replace(spec, client=replace(spec.client, train=broken))
    options = {**QUICK, "rounds": 1, "min_clients": 4, "name": "hostile"}
    try:
        failures = api.run(options, strategy=hostile, workload=workload, runs=folder).rounds[-1]["failures"]
    except RunError as error:
        raise AssertionError(f"an update that is not finite was used, and stopped the run: {error}") from error
    refused = [failure["client"] for failure in failures if failure["phase"] == "clients"]
    _require(len(refused) == 1, f"an update that is not finite was used; check() must refuse it (refused: {refused})")


def _require(condition: object, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)


@dataclass(frozen=True)
class Blobs:
    """Three classes of points in four dimensions; each client's are shifted further than those before it.

    Small enough that a federation takes a fraction of a second; with a batch norm, a feature extractor and a head.
    """

    client_labels: bool = False

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the five clients."""
        return ("near", "close", "middle", "away", "far")

    def model(self) -> nn.Module:
        """Return features (batch, 8) and a head (batch, 3)."""
        return _Net()

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return points ``x`` (90, 4), and classes ``y`` (90,) where the owner has labels."""
        owner = 0 if partition is None else partition + 1
        generator = torch.Generator().manual_seed(2 * owner + (split == "test"))
        y = torch.randint(3, (90,), generator=generator)
        x = torch.randn(90, 4, generator=generator) * 0.4 + 2 * torch.eye(4)[y] + 0.5 * owner
        bare = partition is not None and split == "train" and not self.client_labels
        return ArrayDataset({"x": x} if bare else {"x": x, "y": y})

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return cross_entropy(model(batch["x"]), batch["y"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy and cross-entropy."""
        batch = data[:]
        logits = model.eval()(batch["x"])
        accuracy = float((logits.argmax(1) == batch["y"]).float().mean())
        return {"accuracy": accuracy, "loss": float(cross_entropy(logits, batch["y"]))}


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(x)
        logits: Tensor = self.head(features)
        return logits
