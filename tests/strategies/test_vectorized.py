"""Clients trained at once beside the loop over the same clients: weights, metrics, random streams, errors."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from cohorts import Cohort, distance, state_of
from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError, DataError, RunError
from fedlab.exits import SystemExitError
from fedlab.models.mapped import is_mapped
from fedlab.precision import computing_in
from fedlab.strategies import drawn_ahead, fedavg, local_training, vectorized, whole_models
from fedlab.strategies.scaffold import CORRECTION
from fedlab.workload import WorkloadSpec
from tables import put
from toy import SMALL as TOY
from toy import SPEC as TOY_SPEC
from toy import Net, blobs

TOLERANCE = 1e-5
STRATEGIES = ("fedavg", "fedprox", "scaffold", "fednova", "fedbn", "qfedavg", "fedadam", "oracle")


@pytest.fixture(autouse=True)
def forget():
    """Nothing is refused or noted by an earlier test."""
    vectorized._REFUSED.clear()
    vectorized.take_notes()


@pytest.fixture
def cohort(monkeypatch):
    """Clients of the toy workload, or of another one, under one strategy."""

    def make(strategy="fedavg", spec=TOY_SPEC, **changes):
        put(monkeypatch, "workload", "blobs", spec)
        table = {key: value for key, value in TOY.items() if not key.startswith("dualadapt")}
        table |= {"strategy": strategy, "device": "cpu", "seed": 5, "client.learning_rate": 0.05}
        if spec is TOY_SPEC:
            table |= {"blobs.domains": "a,b,c", "blobs.client_labels": True}
        return Cohort(registry.load_config(table, changes), corrections if strategy == "scaffold" else no_extra)

    return make


def no_extra(partition, model):
    return {}


def corrections(partition, model):
    generator = torch.Generator().manual_seed(partition)
    found = {name: 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in model.named_parameters()}
    return {CORRECTION: ArrayRecord(found)}


def same(cohort):
    """The largest distance between clients trained at once and one by one, none of which failed."""
    many, loop = cohort.at_once(), cohort.one_by_one()
    assert len(many) == len(loop) and not vectorized.take_notes()
    return max(distance(*pair) for pair in zip(many, loop, strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_round_of_every_strategy_is_the_loops(cohort, strategy):
    assert same(cohort(strategy)) < TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        # without batch norm, before which a bias has a gradient of rounding errors alone, and Adam steps of full size
        {"client.optimizer": "adam", "client.learning_rate": 0.01, "blobs.headless": True},
        {"client.max_grad_norm": 0.2},
        {"client.weight_decay": 0.1, "client.momentum": 0.0},
        {"client.ema_decay": 0.6},
        {"client.steps": 0},
        {"client.optimizer": "adam", "client.ema_decay": 0.6, "client.max_grad_norm": 0.2, "client.weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("strategy", ["fedavg", "fedprox"])
def test_every_option_of_local_training_is_the_loops(cohort, strategy, options):
    assert same(cohort(strategy, **options)) < TOLERANCE


def test_a_clipped_gradient_is_each_clients_own(cohort):
    free, clipped = cohort().at_once(), cohort(**{"client.max_grad_norm": 0.2}).at_once()
    assert all(distance(*pair) > 1e-3 for pair in zip(free, clipped, strict=True))


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [("fedavg", "sgd"), ("fedavg", "adam"), ("scaffold", "sgd")],  # scaffold's step size depends on the number of steps
)
def test_clients_with_different_numbers_of_steps(table, strategy, optimizer):
    given = table(strategy, **{"client.epochs": 3.0, "client.optimizer": optimizer, "client.ema_decay": 0.0})
    clients = Cohort(given, corrections if strategy == "scaffold" else no_extra)
    assert len({given.client.local_steps(len(given.workload.data(one, "train"))) for one in range(3)}) == 3
    assert same(clients) < TOLERANCE


def test_an_average_of_weights_stops_with_its_clients_steps(table):
    assert same(Cohort(table("fedavg", **{"client.epochs": 3.0, "client.ema_decay": 0.7}))) < TOLERANCE


@pytest.mark.parametrize("kind", [frozenset, set, list])
def test_frozen_weights_stay(cohort, kind):
    names = kind(["features.1.weight", "head.0.bias"])

    def prepare(*arguments):
        return replace(local_training.prepare(*arguments), frozen=names)

    clients = cohort()
    clients.functions = fedavg.clients(prepare)
    assert same(clients) < TOLERANCE
    state = state_of(clients.at_once()[0])
    assert all(torch.equal(state[name], clients.model.state_dict()[name]) for name in names)


def test_a_client_does_not_depend_on_who_trains_with_it(cohort):
    clients = cohort()
    assert distance(clients.at_once()[2], clients.at_once(2)[0]) < TOLERANCE


def test_global_random_streams_are_untouched(cohort):
    clients = cohort()
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    clients.at_once()
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all() and torch.equal(torch.get_rng_state(), before[2])


def test_batches_are_drawn_in_windows(cohort, monkeypatch):
    monkeypatch.setattr(drawn_ahead, "WINDOW_BYTES", 3 * 2 * 16 * 8)  # two steps of three clients: row numbers alone
    assert same(cohort(**{"client.steps": 7})) < TOLERANCE
    monkeypatch.setattr(drawn_ahead, "WINDOW_BYTES", 3 * 2 * 16 * (4 * 4 + 8) + 3 * 2 * 2000)  # batches, and numbers
    assert same(cohort(spec=WorkloadSpec(Noisy), **{"client.steps": 7})) < TOLERANCE


class InPairs(ArrayDataset):
    """A data set that draws its batches itself: each example twice."""

    def sample_batch(self, size):
        return self[torch.randint(len(self), (size // 2,)).repeat(2)]


def test_a_data_set_that_draws_batches_itself_is_asked_for_them(cohort):
    class Pairs(Task):
        def data(self, partition, split):
            return InPairs(super().data(partition, split).columns)

    assert same(cohort(spec=WorkloadSpec(Pairs), **{"client.steps": 6})) < TOLERANCE


def test_clients_without_examples_answer_as_in_the_loop(cohort):
    class Empty(Task):
        def data(self, partition, split):
            return super().data(partition, split).select(slice(0, 0))

    clients = cohort(spec=WorkloadSpec(Empty), **{"client.epochs": 1})
    assert all(reply["metrics"]["num-examples"] == 0 for reply in clients.one_by_one())
    assert same(clients) == 0


# --- what a loss draws ---


class NoisyNet(Net):
    """Dropout in the model, of which one place drops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.keep = nn.Dropout(0.4), nn.Dropout(0.0)

    def forward(self, x):
        return self.head(self.keep(self.drop(self.features(x))))


@dataclass(frozen=True)
class Task:
    """Three classes in four dimensions; a test gives the model, the loss and the data of its clients."""

    clients = ("a", "b", "c")

    def model(self):
        return Net()

    def data(self, partition, split):
        return ArrayDataset(blobs(40 + 10 * partition, 0.5 * partition, seed=partition))

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model, data):
        return {}


@dataclass(frozen=True)
class Noisy(Task):
    """Dropout, noise and random levels, as diffusion models have them, and random views of the data."""

    def model(self):
        return NoisyNet()

    def data(self, partition, split):
        columns = super().data(partition, split).columns
        return ArrayDataset(columns, lambda batch: {**batch, "x": batch["x"] + torch.randn_like(batch["x"])})

    def loss(self, model, batch):
        level = torch.randint(1, 4, (len(batch["x"]),))
        noise = torch.randn_like(batch["x"]) * level[:, None]
        shift = 0.1 * torch.rand(4)
        return nn.functional.cross_entropy(model(batch["x"] + noise * shift), batch["y"])


def test_what_a_loss_draws_comes_from_each_clients_stream(cohort):
    clients = cohort(spec=WorkloadSpec(Noisy), **{"client.steps": 6})
    assert same(clients) < TOLERANCE
    plain = cohort(spec=WorkloadSpec(Task), **{"client.steps": 6})
    assert distance(clients.at_once()[0], plain.at_once()[0]) > 1e-3


# --- what cannot be vectorized ---


@dataclass(frozen=True)
class Branching(Task):
    def loss(self, model, batch):
        value = super().loss(model, batch)
        return value if value > 0 else -value


@dataclass(frozen=True)
class Recurrent(Task):
    def model(self):
        return nn.ModuleDict({"cell": nn.GRUCell(4, 5), "head": nn.Linear(5, 3)})

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model["head"](model["cell"](batch["x"])), batch["y"])


@dataclass(frozen=True)
class DrawsInPlace(Task):
    def loss(self, model, batch):
        return super().loss(model, {**batch, "x": batch["x"] + torch.empty(4).normal_()})


@dataclass(frozen=True)
class Reading(Task):
    def loss(self, model, batch):
        return super().loss(model, batch) * float(batch["x"].max())


@dataclass(frozen=True)
class Autocast(Task):
    def model(self):
        return nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten())

    def loss(self, model, batch):
        with torch.autocast(batch["x"].device.type, torch.bfloat16):
            logits = model(batch["x"])
        return nn.functional.cross_entropy(logits.float(), batch["y"])


@dataclass(frozen=True)
class TakesGradients(Task):
    def loss(self, model, batch):
        x = batch["x"].detach().requires_grad_(True)
        value = super().loss(model, {**batch, "x": x})
        return value + torch.autograd.grad(value, x, create_graph=True)[0].square().sum()


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Branching, "its loss branches on values"),
        (Recurrent, "operation aten::gru_cell has no batching rule"),
        (DrawsInPlace, "its loss draws random numbers"),
        (Reading, "its loss reads values of tensors"),
        (Autocast, "automatic mixed precision does not reach convolutions that are mapped"),
        (TakesGradients, "its loss takes a gradient itself"),
    ],
)
def test_what_cannot_be_vectorized_takes_the_loop_and_says_why_once(cohort, task, reason):
    clients = cohort(spec=WorkloadSpec(task))
    for _ in range(2):
        for ours, loop in zip(clients.at_once(), clients.one_by_one(), strict=True):
            assert all(torch.equal(state_of(ours)[key], state_of(loop)[key]) for key in state_of(loop))
            assert dict(ours["metrics"]) == dict(loop["metrics"])
    (note,) = vectorized.take_notes()
    assert note.startswith("clients of this workload cannot train at once") and reason in note


def test_clients_in_bfloat16_take_the_loop_and_those_in_float32_do_not(cohort):
    clients = cohort(spec=WorkloadSpec(Task))
    with computing_in("bf16", torch.device("cpu")):
        for ours, loop in zip(clients.at_once(), clients.one_by_one(), strict=True):
            assert all(torch.equal(state_of(ours)[key], state_of(loop)[key]) for key in state_of(loop))
    (note,) = vectorized.take_notes()
    assert "precision=bf16" in note
    clients.at_once()
    assert vectorized.take_notes() == []


# --- clients that fail ---


@dataclass(frozen=True)
class Failing(Task):
    """The second client has something wrong."""

    wrong: str = ""

    def data(self, partition, split):
        columns = dict(super().data(partition, split).columns)
        if partition != 1 or not self.wrong:
            return ArrayDataset(columns)
        if self.wrong == "labels":
            del columns["y"]
        if self.wrong == "class":
            columns["y"] = columns["y"] + 3
        if self.wrong == "range":
            columns["x"] = columns["x"] + 300
        if self.wrong == "nan":
            columns["x"] = columns["x"] * float("nan")
        failing = {"disk": self.fail, "exit": self.end}
        return ArrayDataset(columns, failing.get(self.wrong))

    def loss(self, model, batch):
        if not is_mapped(batch["x"]):
            self.check_batch(batch)
        return super().loss(model, batch)

    def check_batch(self, batch):
        if self.wrong == "range" and batch["x"].max() > 100:
            raise DataError("bytes, and not numbers of size one")

    @staticmethod
    def end(batch):
        raise SystemExit(3)

    @staticmethod
    def fail(batch):
        raise OSError("the disk of this client is gone")


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ("labels", ConfigError, "this client's training data has none"),
        ("class", IndexError, "Target"),
        ("nan", RunError, "local training: the loss is nan at step 1 of 5"),
        ("disk", OSError, "the disk of this client is gone"),
        ("exit", SystemExitError, "sys.exit(3) was called in"),
        ("range", DataError, "bytes, and not numbers of size one"),
    ],
)
def test_a_client_that_fails_is_named_and_the_others_are_kept(cohort, wrong, error, sentence):
    first, second, third = cohort(spec=WorkloadSpec(Failing), **{"blobs.wrong": wrong}).at_once()
    assert isinstance(second, error) and sentence in str(second)
    well = cohort(spec=WorkloadSpec(Failing)).one_by_one()
    assert distance(first, well[0]) < TOLERANCE and distance(third, well[2]) < TOLERANCE
    assert not vectorized.take_notes()


@dataclass(frozen=True)
class Mostly(Failing):
    """The data of one client of three can be read."""

    def data(self, partition, split):
        data = super().data(partition, split)
        return data if partition == 2 else ArrayDataset(dict(data.columns), self.fail)


def test_clients_that_fail_are_all_found_at_once(cohort, monkeypatch):
    clients, prepared = cohort(spec=WorkloadSpec(Mostly)), []
    one_reply = clients.one_by_one_of(2)
    real = whole_models.WholeModels.prepare

    def prepare(self, workload, message, context):
        prepared.append(context.partition)
        return real(self, workload, message, context)

    monkeypatch.setattr(whole_models.WholeModels, "prepare", prepare)
    outcomes = clients.at_once(*[0, 1, 2] * 8)
    assert [isinstance(one, OSError) for one in outcomes] == [True, True, False] * 8
    assert all(distance(one, one_reply) < TOLERANCE for one in outcomes[2::3])
    assert len(prepared) <= 3 * len(outcomes)  # a start anew for each that fails would be hundreds


def test_a_client_that_ends_its_process_while_memory_is_measured_ends_no_run(cohort):
    clients = cohort(spec=WorkloadSpec(Failing), **{"blobs.wrong": "exit"})
    with pytest.raises(SystemExitError, match=r"sys\.exit\(3\) was called"):
        clients.functions.train_many.memory(clients.workload, clients.messages[1], clients.contexts[1])


def test_weights_of_another_model_are_the_error_of_their_client(cohort):
    clients = cohort()
    clients.messages[0].content["arrays"] = ArrayRecord(nn.Linear(2, 2).state_dict())
    first, second, _ = clients.at_once()
    assert "these weights are of another model" in str(first)
    assert distance(second, cohort().one_by_one()[1]) < TOLERANCE


def test_clients_that_do_not_fit_into_memory_train_in_halves(cohort, monkeypatch):
    real = whole_models.StackedModel

    def small(model, states, *rest):
        if len(states) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, states, *rest)

    monkeypatch.setattr(whole_models, "StackedModel", small)
    clients = cohort()
    for pair in zip(clients.at_once(), clients.one_by_one(), strict=True):
        assert distance(*pair) < TOLERANCE
    assert vectorized.take_notes()[0] == "3 clients at once do not fit into memory, so 2 train at a time"


# --- memory ---


def test_memory_is_a_line_through_one_and_two_clients(cohort):
    clients = cohort()
    found = clients.functions.train_many.memory(clients.workload, clients.messages[0], clients.contexts[0])
    weights = sum(tensor.nbytes for tensor in clients.model.state_dict().values())
    assert found.each >= whole_models.COPIES * weights
    assert found.largest(found.bytes(7)) == 7


def test_memory_of_clients_that_cannot_train_at_once_is_refused(cohort):
    clients = cohort(spec=WorkloadSpec(Branching))
    with pytest.raises(vectorized.NotVectorizable, match="branches on values"):
        clients.functions.train_many.memory(clients.workload, clients.messages[0], clients.contexts[0])


# --- the networks of the house ---

IMAGES = {"workload": "images", "strategy": "fedavg", "images.client_labels": True, "images.source": "omniglot"}
QUICK = {"device": "cpu", "client.steps": 2, "client.batch_size": 8, "client.learning_rate": 0.01, "threads": 1}


def network(preset, options):
    few = {"data.max_examples": 200, "data.num_clients": 2}
    return Cohort(registry.load_config(preset, {**QUICK, **few, **options}))


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("fedavg-digits", {}),
        ("mixer-digits", {}),
        (IMAGES, {"images.network": "conv", "data.label_smoothing": 0.2}),
        (IMAGES, {"images.network": "mixer"}),
        (IMAGES, {"images.network": "vit"}),
        # mixed precision is left out: what is mapped would not have it in convolutions
        ("ddpm-mnist", {"precision": "float32"}),
        ("ncsn-mnist", {"precision": "float32", "generation.network": "ncsn1", "generation.width": 4}),
        # not Adam: a bias before the softmax of attention has a gradient of rounding errors alone
        ("mpgvae-qm9", {"data.max_examples": 400, "client.optimizer": "sgd"}),
        ("oracle-office", {}),
        ("oracle-pacs", {"data.max_examples": 60}),
    ],
)
def test_a_round_of_every_network_is_the_loops(preset, options):
    assert same(network(preset, options)) < TOLERANCE


@pytest.mark.engine
@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("fedavg-digits", {"digits.network": "mcd"}),
        ("oracle-camvid", {}),
        ("graphnvp-qm9", {"data.max_examples": 400}),
    ],
)
def test_a_round_of_every_large_network_is_the_loops(preset, options):
    assert same(network(preset, options)) < TOLERANCE
