"""Clients of one process that train at once, through both apps: the results of the loop, errors and notes by client."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from flwr.app import ConfigRecord
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedlab import registry
from fedlab.checks import check_participation
from fedlab.client import app
from fedlab.comm.stacked_replies import StackedContents
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.runs.client_state import ClientState
from fedlab.runs.directory import RunDirectory
from fedlab.strategies import fedavg, local_training
from fedlab.strategies.protocol import SERVER_STEPS, StrategySpec
from fedlab.strategies.vectorized import ManyClients
from fedlab.vectorized.stacked_states import StackedStates
from fedlab.workload import WorkloadSpec
from tables import lead, put
from toy import SMALL, SPEC

OPTIONS = {key: value for key, value in SMALL.items() if not key.startswith("dualadapt")}
OPTIONS |= {"blobs.domains": "a,b,c,d,e", "blobs.client_labels": True, "rounds": 1, "threads": 1, "seed": 5}


@pytest.fixture
def federate(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", SPEC)

    def run(strategy="fedavg", **changes):
        config = registry.load_config({**OPTIONS, "strategy": strategy, "name": "toy"}, changes)
        directory = RunDirectory.create(tmp_path, config)
        lead(directory)
        return directory

    return run


def arrays_of(directory):
    return directory.checkpoints.latest()[1]["arrays"]


def notes_of(directory):
    text = (directory.path / "events.jsonl").read_text()
    return [line for line in text.splitlines() if '"event": "note"' in line]


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "fednova", "fedbn", "fedadam", "fedmedian"])
@pytest.mark.parametrize("vectorize", ["2", "auto"])
def test_a_round_is_that_of_one_client_after_another(federate, strategy, vectorize):
    loop, many = federate(strategy), federate(strategy, vectorize=vectorize)
    for name, tensor in arrays_of(loop).items():
        torch.testing.assert_close(arrays_of(many)[name], tensor, rtol=1e-5, atol=1e-6)
    assert many.manifest()["numerics"]["training"] == "vectorized"
    assert loop.manifest()["numerics"]["training"] == "one client at a time"
    assert loop.rounds()[-1]["bytes"] == many.rounds()[-1]["bytes"]
    assert not notes_of(many)


def test_it_gives_the_same_bits_twice(federate):
    assert federate(vectorize="3").manifest()["weights_sha256"] == federate(vectorize="3").manifest()["weights_sha256"]


def test_every_process_asks_the_same_client_how_many_fit(federate, tmp_path, monkeypatch):
    asked, memory = [], ManyClients.memory

    def spy(self, workload, message, context):
        asked.append(context.partition)
        return memory(self, workload, message, context)

    monkeypatch.setattr(ManyClients, "memory", spy)
    monkeypatch.setattr(app, "_at_once", {})
    (tmp_path / "clients.txt").write_text("d, e\n")
    federate(vectorize="auto", schedule=str(tmp_path / "clients.txt"))
    assert asked == [0]


@pytest.mark.parametrize("broken", [0, 2])
def test_a_client_that_fails_is_named_and_the_others_are_used(federate, broken):
    directory = federate(vectorize="5", min_clients=3, **{"blobs.broken": broken})
    (failure,) = directory.rounds()[-1]["failures"]
    assert (failure["client"], failure["phase"]) == ("abcde"[broken], "clients")
    alone = federate(min_clients=3, **{"blobs.broken": broken})
    for name, tensor in arrays_of(alone).items():
        torch.testing.assert_close(arrays_of(directory)[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["feddyn", "moon"])
def test_a_client_whose_state_cannot_be_read_fails_alone(federate, monkeypatch, strategy):
    save = ClientState.save

    def damaged(self, server_round, state):
        save(self, server_round, state)
        if self.folder.name == "1":
            (self.folder / f"{server_round}.pt").write_bytes(b"damaged")

    monkeypatch.setattr(ClientState, "save", damaged)
    rounds = federate(strategy, vectorize="auto", rounds=2, min_clients=1).rounds()
    assert [[failure["client"] for failure in record["failures"]] for record in rounds] == [[], [], ["b"]]
    assert "1.pt cannot be read" in rounds[2]["failures"][0]["reason"]


def test_a_strategy_that_cannot_says_so_once_and_gives_the_bits_of_the_loop(federate):
    loop, many = federate("fedparts", rounds=2), federate("fedparts", rounds=2, vectorize="auto")
    assert loop.manifest()["weights_sha256"] == many.manifest()["weights_sha256"]
    assert sum("train one after another" in note for note in notes_of(many)) == 1


@dataclass(frozen=True)
class NoOptions:
    """A strategy of a user has none here."""


def prepare_with_a_mark(workload, message, context):
    """Local training; the message gets a record that another client may not see."""
    mark = message.content.setdefault("mark", ConfigRecord({"partition": context.partition}))
    assert mark["partition"] == context.partition, "it is marked by another client"
    return local_training.prepare(workload, message, context)


@pytest.mark.parametrize(
    ("at_once", "options"), [(True, {"comm.compression": "float16"}), (False, {})], ids=["decoded", "one by one"]
)
def test_what_a_client_adds_to_a_message_of_its_own_reaches_no_other(federate, monkeypatch, at_once, options):
    client = fedavg.clients(prepare_with_a_mark)
    client = client if at_once else replace(client, train_many=None)
    spec = StrategySpec(NoOptions, fedavg.FedAvg, client, needs_client_labels=True, ignores=SERVER_STEPS)
    put(monkeypatch, "strategy", "marks", spec)
    loop, many = federate("marks", **options), federate("marks", vectorize="5", **options)
    for name, tensor in arrays_of(loop).items():
        torch.testing.assert_close(arrays_of(many)[name], tensor, rtol=1e-3, atol=1e-4)


def test_more_than_fit_into_memory_are_refused_with_how_many_would(federate):
    with pytest.raises(Exception, match=r"100000000 clients at once .* would fit"):
        federate(vectorize="100000000")


@pytest.mark.parametrize("value", ["on", "0", "-1", "1.5", "9" * 20, "9" * 5000, "1\uff12"])
def test_a_wrong_number_is_refused(federate, value):
    with pytest.raises(ConfigError, match="vectorize"):
        federate(vectorize=value)


def test_an_engine_with_a_process_for_each_client_is_refused(federate):
    with pytest.raises(ConfigError, match=r"vectorize=auto .*engine 'ray'.*use engine=local"):
        check_participation(
            registry.load_config({**OPTIONS, "engine": "ray", "vectorize": "auto", "strategy": "fedavg"})
        )


# --- what the host does for a client ---

POOL = {"x": torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), "y": torch.arange(64) % 3}
OWN_DATA = {"arange": 1.0, "add": 1.0, "remainder": 1.0}  # what the workload below does for a client's data


@dataclass(frozen=True)
class ManyOfOnePool:
    """So many clients, each some rows of one pool."""

    count: int = 4

    @property
    def clients(self):
        return tuple(f"c{number}" for number in range(self.count))

    def model(self):
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    def data(self, partition, split):
        return ArrayDataset(POOL).select((torch.arange(16) + (partition or 0)) % 64)

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model, data):
        return {"accuracy": 1.0}


class Operations(TorchDispatchMode):
    """Counts torch's operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def operations(monkeypatch, tmp_path):
    """The operations that a client of a run adds to it, by name: so many clients, and so many more."""

    def count(clients, **changes):
        spec = WorkloadSpec(ManyOfOnePool, name="of_one_pool")
        put(monkeypatch, "workload", "of_one_pool", spec)
        monkeypatch.setattr(app, "_at_once", {})
        table = {"workload": "of_one_pool", "strategy": "fedavg", "of_one_pool.count": clients, "engine": "inprocess"}
        table |= {"rounds": 2, "threads": 1, "server.pretrain_steps": 0, "client.evaluate": False, "device": "cpu"}
        table |= {"client.steps": 3, "client.batch_size": 4, "name": f"of {clients}", "vectorize": "100"}
        directory = RunDirectory.create(tmp_path, registry.load_config(table, changes))
        with Operations() as found:
            lead(directory)
        assert directory.manifest()["status"] == "finished" and not directory.rounds()[-1]["failures"]
        return found.counts

    def each(**changes):
        count(4, **changes)  # what a first run does once
        few, many = count(10, **changes), count(40, **changes)
        return {name: (many[name] - few[name]) / 30 / 2 for name in many if many[name] != few[name]}

    return each


def test_clients_trained_at_once_add_two_operations_of_theirs(operations):
    added = operations()
    assert added == {**OWN_DATA, "randint": 1.0, "_foreach_add_": 1.0}


def test_on_a_device_rows_are_neither_summed_nor_read_one_by_one(operations, monkeypatch):
    monkeypatch.setattr(StackedStates, "is_summed_at_once", True)
    added = operations()
    assert added == {**OWN_DATA, "randint": 1.0}  # its row numbers, from its random stream


def test_what_is_asked_of_every_reply_makes_no_content_of_it(operations, monkeypatch):
    made, kept = Counter(), []
    content = StackedContents.__getitem__

    def count(self, row):
        kept.append(self)  # else another may get its id
        made[id(self)] += 1
        return content(self, row)

    monkeypatch.setattr(StackedContents, "__getitem__", count)
    operations()
    assert set(made.values()) == {1}  # whose size is that of the others


def test_models_summed_at_once_have_the_mean_of_the_loop(federate, monkeypatch):
    one_by_one = federate("fedadam", vectorize="3")
    monkeypatch.setattr(StackedStates, "is_summed_at_once", True)
    at_once = federate("fedadam", vectorize="3")
    for name, tensor in arrays_of(one_by_one).items():
        torch.testing.assert_close(arrays_of(at_once)[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "cpu", "cuda"), [("off", 0, 0), ("auto", 256, 1024), ("3", 3, 3)], ids=["off", "auto", "a number"]
)
def test_a_process_gets_more_messages_at_a_time_for_a_gpu(federate, value, cpu, cuda):
    run = registry.load_config({**OPTIONS, "strategy": "fedavg", "vectorize": value}).run
    assert (run.clients_at_once("cpu"), run.clients_at_once("cuda"), run.vectorizes) == (cpu, cuda, cpu > 0)
