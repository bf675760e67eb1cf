"""DualAdapt's clients trained at once beside the loop over the same clients: heads, mixtures, metrics, errors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import nn

from cohorts import ROUND, Cohort, distance
from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import RunError
from fedlab.models import em
from fedlab.seeds import seeded
from fedlab.strategies import drawn_ahead, vectorized
from fedlab.strategies.dualadapt import many_clients
from fedlab.strategies.dualadapt.mixtures import upload
from fedlab.strategies.dualadapt.shared import HEAD, MIXTURE, ONLY_MIXTURE, START
from fedlab.workload import WorkloadSpec
from tables import put
from toy import SMALL, Net, blobs

TOLERANCE = 1e-5
COUNTS = (40, 90, 25, 60)


@dataclass(frozen=True)
class Ragged:
    """Three classes in four dimensions; clients of different sizes; ``wrong`` is in the features of the second."""

    head: str = "linear"
    wrong: bool = False
    clients = ("a", "b", "c", "d")

    def model(self):
        return WideNet() if self.head == "deep" else Net(linear=self.head == "single")

    def data(self, partition, split):
        columns = blobs(COUNTS[partition], 0.5 * partition, seed=partition)
        if self.wrong and partition == 1:
            columns["x"][3] = float("nan")
        return ArrayDataset({"x": columns["x"]})

    def loss(self, model, batch):
        raise AssertionError("clients of DualAdapt do not use the workload's loss")

    def evaluate(self, model, data):
        return {}


class WideNet(Net):
    """A head with a batch norm and dropout; a bias before a batch norm has a gradient of rounding errors alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
        )


@pytest.fixture(autouse=True)
def forget():
    vectorized._REFUSED.clear()
    vectorized.take_notes()


@pytest.fixture
def cohort(monkeypatch):
    """Clients that all get one model and one source mixture, and what ``extra`` gives for a partition."""
    put(monkeypatch, "workload", "ragged", WorkloadSpec(Ragged))

    def make(extra=lambda partition, model: {}, **changes):
        table = SMALL | {"workload": "ragged", "strategy": "dualadapt", "device": "cpu", "seed": 5}

        def records(partition, model):
            with seeded("source"), torch.no_grad():
                z = model.eval().features(blobs(80, 0.0, seed=9)["x"])
                mixture = em.fit(z, 2, variance_floor=1e-2)
            return {MIXTURE: upload(mixture, z), **extra(partition, model)}

        return Cohort(registry.load_config({**table, "client.learning_rate": 0.05}, changes), records)

    return make


def same(cohort, *names):
    """The largest distance of heads, mixtures and metrics between clients trained at once and one by one."""
    many, loop = cohort.at_once(), cohort.one_by_one()
    assert not vectorized.take_notes() and not any(isinstance(reply, Exception) for reply in many)
    assert [list(reply) for reply in many] == [list(reply) for reply in loop]
    return max(distance(*pair, name) for pair in zip(many, loop, strict=True) for name in names or (HEAD, MIXTURE))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dualadapt.pseudo_labels": "global", "dualadapt.class_balance": 0.0, "dualadapt.client_weights": False},
        {"dualadapt.max_features": 30},
        {"client.epochs": 4.0},  # so numbers of steps and learning rates differ
        {"client.steps": 0},
        {"ragged.head": "single"},
        {"ragged.head": "deep", "client.epochs": 3.0},
        {"dualadapt.local_privacy": "moments", "dualadapt.noise_multiplier": 0.5},
        {"dualadapt.local_privacy": "gradients", "dualadapt.noise_multiplier": 0.5},
    ],
)
def test_a_round_is_the_loops(cohort, options):
    assert same(cohort(**options)) < TOLERANCE


def test_batches_are_drawn_in_windows(cohort, monkeypatch):
    monkeypatch.setattr(drawn_ahead, "WINDOW_BYTES", 4 * 2 * 8 * SMALL["client.batch_size"])  # two steps
    assert same(cohort(**{"client.steps": 7})) < TOLERANCE


def test_late_joiners_start_from_their_heads_and_send_their_mixture_alone_when_asked(cohort):
    def extra(partition, model):
        if partition == 1:
            with seeded("another head"):
                return {START: ArrayRecord(Net().head.state_dict())}
        if partition in (0, 3):
            return {"config": ConfigRecord({"server-round": ROUND, ONLY_MIXTURE: True})}
        return {}

    clients = cohort(extra, **{"client.epochs": 2.0, "dualadapt.late_joiner_init": "nearest"})
    many, loop = clients.at_once(), clients.one_by_one()
    assert [HEAD in reply for reply in many] == [False, True, True, False]
    for reply, other in zip(many, loop, strict=True):
        for name in (HEAD, MIXTURE) if HEAD in other else (MIXTURE,):
            assert distance(reply, other, name) < TOLERANCE
    plain = cohort(**{"client.epochs": 2.0}).one_by_one()
    assert distance(many[1], plain[1], HEAD) > 1e-3


def test_steps_and_draws_are_a_clients_own(cohort):
    clients = cohort(**{"client.epochs": 2.0})
    assert distance(clients.at_once()[2], clients.at_once(2)[0], HEAD) < TOLERANCE


def test_a_client_whose_features_are_not_finite_is_named_and_the_others_are_kept(cohort):
    well = cohort().one_by_one()
    first, second, third, fourth = cohort(**{"ragged.wrong": True, "dualadapt.bn_adaptation": 0.0}).at_once()
    assert isinstance(second, ValueError | RunError)
    plain = cohort(**{"dualadapt.bn_adaptation": 0.0}).one_by_one()
    for reply, other in zip((first, third, fourth), (plain[0], plain[2], plain[3]), strict=True):
        assert distance(reply, other, HEAD) < TOLERANCE
    assert len(well) == 4 and not vectorized.take_notes()


def test_a_head_that_cannot_be_mapped_takes_the_loop_and_says_why(cohort, monkeypatch):
    class Branching(nn.Linear):
        def forward(self, z):
            return super().forward(z) if z.sum() > -1e9 else z

    monkeypatch.setattr("toy.nn.Linear", Branching)
    clients = cohort(**{"ragged.head": "single"})
    for reply, other in zip(clients.at_once(), clients.one_by_one(), strict=True):
        assert distance(reply, other, HEAD) == 0
    (note,) = vectorized.take_notes()
    assert "its loss branches on values" in note


def test_clients_that_do_not_fit_into_memory_train_in_halves(cohort, monkeypatch):
    real = many_clients.StackedModel

    def small(model, states, *rest):
        if len(states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, states, *rest)

    monkeypatch.setattr(many_clients, "StackedModel", small)
    clients = cohort()
    for many, loop in zip(clients.at_once(), clients.one_by_one(), strict=True):
        assert max(distance(many, loop, name) for name in (HEAD, MIXTURE)) < TOLERANCE
    assert vectorized.take_notes()[0] == "4 clients at once do not fit into memory, so 2 train at a time"


def test_memory_counts_features_heads_and_mixtures(cohort):
    clients = cohort()
    found = clients.functions.train_many.memory(clients.workload, clients.messages[0], clients.contexts[0])
    features = 2 * COUNTS[0] * 8 * 4
    assert found.each >= features + many_clients.MIXTURES * 2 * 2 * 8 * 8
    assert found.largest(found.bytes(7)) == 7
