"""Rows of ``benchmarks.clients``: one system that runs rounds of many clients, in a process of its own.

python -m benchmarks.client_systems inprocess mlp 1000 50 4   # row, network, registered, clients a round, rounds
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from benchmarks.client_workload import BATCH, EXAMPLES, NETWORKS, RATE, STEPS, TESTED, pool, rows_of_client
from fedlab.config.sections import Value

WORKLOAD = "benchmarks.client_workload:SPEC"


@dataclass(frozen=True)
class Work:
    """The work that a row is asked for: ``registered`` clients of which ``cohort`` take part in each of ``rounds``."""

    network: str
    registered: int
    cohort: int
    rounds: int
    device: str = "cpu"


@dataclass
class Clock:
    """Times of rounds: seconds since the epoch at the first message, and the seconds of each round.

    ``cpu`` are the seconds of the CPU that this process took for each round, and ``weights`` those of the last round,
    where a row gives them.
    """

    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    _started: float = 0.0

    def start(self) -> None:
        """Begin a round."""
        self.first = self.first or time.time()
        self._started = time.perf_counter()

    def stop(self) -> None:
        """End a round, when all devices have done what they were given."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)


Measure = Callable[[Work], Clock]


def local_steps(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """Perform one epoch of SGD on a client's images x (50, 3, 32, 32) with labels y (50,)."""
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    for start in range(0, EXAMPLES, BATCH):
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(model(x[start : start + BATCH]), y[start : start + BATCH]).backward()
        optimizer.step()


def cohort_of(work: Work, server_round: int) -> list[int]:
    """Return the clients of a round."""
    order = torch.randperm(work.registered, generator=torch.Generator().manual_seed(server_round))
    return order[: work.cohort].tolist()


def columns_on(device: str) -> Mapping[str, Tensor]:
    """Return the images and labels of all clients, on a device."""
    return {name: column.to(device) for name, column in pool().columns.items()}


def plain_loop(work: Work) -> Clock:
    """Train one client after another in plain torch, and average."""
    model, data, clock = NETWORKS[work.network]().to(work.device), columns_on(work.device), Clock()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for server_round in range(work.rounds):
        clock.start()
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for client in cohort_of(work, server_round):
            model.load_state_dict(weights)
            rows = rows_of_client(client)
            local_steps(model, data["x"][rows], data["y"][rows])
            for name, value in model.state_dict().items():
                total[name] += value
        weights = {name: value / work.cohort for name, value in total.items()}
        clock.stop()
    clock.weights = weights
    return clock


def vmap_by_hand(work: Work, at_once: int = 50) -> Clock:
    """Train 50 clients at once: stacked weights, a vectorized forward pass, the gradient of the summed losses."""
    model, data, clock = NETWORKS[work.network]().to(work.device), columns_on(work.device), Clock()
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, dict(parameters), (x,)), y)

    for server_round in range(work.rounds):
        clock.start()
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        chosen = cohort_of(work, server_round)
        for start in range(0, work.cohort, at_once):
            group = chosen[start : start + at_once]
            rows = torch.stack([rows_of_client(client) for client in group])
            stacked = {
                name: value.expand(len(group), *value.shape).clone().requires_grad_() for name, value in weights.items()
            }
            for step in range(STEPS):
                part = rows[:, step * BATCH : (step + 1) * BATCH]
                losses = vmap(loss)(stacked, data["x"][part], data["y"][part])
                gradients = torch.autograd.grad(losses.sum(), list(stacked.values()))
                with torch.no_grad():
                    for value, gradient in zip(stacked.values(), gradients, strict=True):
                        value -= RATE * gradient
            for name, value in stacked.items():
                total[name] += value.detach().sum(0)
        weights = {name: value / work.cohort for name, value in total.items()}
        clock.stop()
    clock.weights = weights
    return clock


def fedlab_engine(engine: str, vectorize: str = "off") -> Measure:
    """Return the row of one of our engines: a run of FedAvg through Flower's messages and our client app.

    With ``vectorize`` "all" the clients of a round train at once.
    """

    def measure(work: Work) -> Clock:
        import fedlab

        overrides: dict[str, Value] = {
            "strategy": "fedavg",
            "engine": engine,
            "vectorize": str(work.cohort) if vectorize == "all" else vectorize,
            "rounds": work.rounds,
            "fraction_train": work.cohort / work.registered,
            "evaluate_every": 1,
            "checkpoint.every": work.rounds,
            "many_clients.network": work.network,
            "data.num_clients": work.registered,
            "server.pretrain_steps": 0,
            "server.evaluate": True,
            "client.evaluate": False,
            "client.steps": 0 if work.network == "empty" else STEPS,
            "client.batch_size": BATCH,
            "client.learning_rate": RATE,
            "client.momentum": 0.0,
            "device": work.device,
        }
        TESTED.clear()
        with tempfile.TemporaryDirectory() as folder:
            result = fedlab.run({"workload": WORKLOAD, **overrides}, runs=Path(folder))
            events = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
        ends = [event["time"] for event in events if event["event"] == "round"]
        first = next(event["time"] for event in events if event.get("phase") == "clients")
        seconds, cpu = ([after - before for before, after in pairwise(times)] for times in (ends, TESTED))
        return Clock(first, seconds, cpu)

    return measure


def flower_simulation(work: Work) -> Clock:
    """Run Flower's own FedAvg with a plain client app in its Ray simulation, one CPU a client."""
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import PARTITION_ID_KEY
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    clock, client_app, server_app = Clock(), ClientApp(), ServerApp()

    class Timed(FedAvg):
        def configure_train(self, *arguments: Any) -> Any:
            clock.start()
            return super().configure_train(*arguments)

        def aggregate_train(self, *arguments: Any) -> Any:
            found = super().aggregate_train(*arguments)
            clock.stop()
            return found

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        model, data = NETWORKS[work.network](), pool().columns
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        rows = rows_of_client(int(context.node_config[PARTITION_ID_KEY]))
        if work.network != "empty":
            local_steps(model, data["x"][rows], data["y"][rows])
        found = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": EXAMPLES})}
        return Message(RecordDict(found), reply_to=message)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        fraction = work.cohort / work.registered
        strategy = Timed(fraction_train=fraction, fraction_evaluate=0.0, min_available_nodes=work.registered)
        strategy.start(grid, ArrayRecord(NETWORKS[work.network]().state_dict()), num_rounds=work.rounds)

    run_simulation(
        server_app,
        client_app,
        work.registered,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"address": "local"},  # else Ray waits for the last cluster that was left here, dead or alive
        },
    )
    return clock


def pfl_research(work: Work) -> Clock:
    """Run pfl-research's simulation of federated averaging in this process."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    data, clock, users = pool().columns, Clock(), list(range(work.registered))

    class Rounds(TrainingProcessCallback):
        def on_train_begin(self, *, model: Any) -> Any:
            clock.start()
            return super().on_train_begin(model=model)

        def after_central_iteration(self, *arguments: Any, **options: Any) -> Any:
            clock.stop()
            clock.start()
            return super().after_central_iteration(*arguments, **options)

    def client(user: int) -> PyTorchTensorDataset:
        rows = rows_of_client(user)
        return PyTorchTensorDataset((data["x"][rows], data["y"][rows]))

    network = NETWORKS[work.network]()
    network.loss = lambda x, y: cross_entropy(network(x), y)  # type: ignore[assignment]
    network.metrics = lambda x, y: {}  # type: ignore[assignment]
    model = PyTorchModel(
        model=network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
    )
    dataset = FederatedDataset(client, get_user_sampler("random", users))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds + 1,
            train_cohort_size=work.cohort,
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=dataset, val_data=dataset),
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
        model_eval_params=None,
        callbacks=[Rounds()],
    )
    return clock


@dataclass(frozen=True)
class Row:
    """One line of the tables; ``missing`` says why it cannot be measured here, "" where it can."""

    title: str
    measure: Measure
    missing: Callable[[], str] = lambda: ""
    ours: bool = False
    empty: bool = False  # measured in rounds without work as well


def _without_module(name: str, install: str) -> Callable[[], str]:
    return lambda: "" if find_spec(name) else f"needs `pip install {install}`"


ROWS: Mapping[str, Row] = {
    "loop": Row("plain torch loop", plain_loop),
    "vmap": Row("torch.func.vmap by hand", vmap_by_hand),
    "inprocess": Row("fedlab, inprocess", fedlab_engine("inprocess"), ours=True, empty=True),
    "inprocess_vectorized": Row("fedlab, inprocess, vectorized", fedlab_engine("inprocess", "auto"), ours=True),
    "inprocess_at_once": Row("fedlab, inprocess, a round at once", fedlab_engine("inprocess", "all"), ours=True),
    "pool": Row("fedlab, pool", fedlab_engine("pool"), ours=True, empty=True),
    "pool_vectorized": Row("fedlab, pool, vectorized", fedlab_engine("pool", "auto"), ours=True),
    "flower": Row("Flower, Ray simulation", flower_simulation, _without_module("ray", "ray")),
    "pfl": Row("pfl-research", pfl_research, _without_module("pfl", "pfl")),
}


def main() -> None:
    """Measure one row and print its times as one line of JSON, the last of the output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("network")
    parser.add_argument("numbers", type=int, nargs="*", help="registered clients, clients a round, rounds")
    given = parser.parse_args()
    clock = ROWS[given.row].measure(Work(given.network, *given.numbers))
    print(json.dumps({"first": clock.first, "seconds": clock.seconds, "cpu": clock.cpu}), flush=True)


if __name__ == "__main__":
    main()
