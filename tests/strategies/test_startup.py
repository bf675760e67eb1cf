"""STARTUP beside the same method as a plain loop over small images, its ablations, and what is refused."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.models.feature_classifier import features_of
from fedlab.runs.checkpoints import Checkpoints
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.strategies import startup
from fedlab.strategies.validation import InvalidUpdate
from fedlab.workload import WorkloadSpec
from tables import lead, put, server_strategy

SEED, ROUNDS, R_S, R_C, BATCH, RATE, CLASSES = 5, 2, 3, 4, 6, 0.05, 4
SMALL = {
    "workload": "dots",
    "device": "cpu",
    "threads": 1,
    "rounds": ROUNDS,
    "seed": SEED,
    "server.pretrain_steps": 4,
    "server.steps": R_S,
    "server.batch_size": BATCH,
    "server.learning_rate": RATE,
    "client.steps": R_C,
    "client.batch_size": BATCH,
    "client.learning_rate": RATE,
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(3, 8), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.features(x))


@dataclass(frozen=True)
class Dots:
    """Four classes in three dimensions on the server; two clients with other points; a view adds noise."""

    linear_head: bool = True

    @property
    def clients(self) -> tuple[str, ...]:
        return "a", "b"

    def model(self):
        net = Net()
        if not self.linear_head:
            net.head = nn.Sequential(net.head)
        return net

    def data(self, partition, split):
        generator = torch.Generator().manual_seed(3 if partition is None else 20 + partition)
        count = 40 if partition is None else 10 + 5 * partition
        y = torch.randint(CLASSES, (count,), generator=generator)
        x = torch.randn(count, 3, generator=generator) + y[:, None] - (0 if partition is None else 1 + partition)
        return ArrayDataset({"x": x} if partition is not None and split == "train" else {"x": x, "y": y})

    def view(self, x, weak=False):
        return x + (0.05 if weak else 0.3) * torch.randn_like(x)

    def loss(self, model, batch):
        return cross_entropy(model(batch["x"]), batch["y"])

    @torch.no_grad()
    def evaluate(self, model, data):
        return {"loss": float(self.loss(model, data[:]))}


@pytest.fixture
def table(monkeypatch):
    put(monkeypatch, "workload", "dots", WorkloadSpec(Dots))

    def make(**changes):
        return registry.load_config({**SMALL, "strategy": "startup", "name": "dots"}, changes)

    return make


@pytest.fixture
def federate(tmp_path, table):
    def run(**changes):
        directory = RunDirectory.create(tmp_path, table(**changes))
        lead(directory)
        return directory

    return run


def final(directory):
    return directory.checkpoints.latest()[1]


def rate(server_round):
    return RATE * (1 + np.cos(np.pi * (server_round - 1) / ROUNDS)) / 2


def contrast(z):
    """Equation 1 of SimCLR as a double loop, at temperature 1."""
    z, n = normalize(z, dim=1), len(z) // 2
    terms = []
    for i in range(2 * n):
        others = torch.stack([(z[i] @ z[j]).exp() for j in range(2 * n) if j != i]).sum()
        terms.append(others.log() - z[i] @ z[(i + n) % (2 * n)])
    return torch.stack(terms).mean()


class Plain:
    """Backbone, head and projector as one module with the names of a student."""

    def __init__(self, student):
        self.student = student
        self.weights = list(student.parameters())
        self.speeds = [torch.zeros_like(weight) for weight in self.weights]

    def step(self, loss, size):
        """SGD with momentum 0.9 and weight decay 1e-4; a weight that the loss does not know stays."""
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        with torch.no_grad():
            for weight, speed, gradient in zip(self.weights, self.speeds, gradients, strict=True):
                if gradient is not None:
                    speed.mul_(0.9).add_(gradient + 1e-4 * weight)
                    weight -= size * speed


def target_loss(student, x, rows, soft, first, second):
    """Line 7: the mean of two KL divergences, and the contrastive loss."""
    divergences = []
    for view in (first, second):
        p = student.model(view).log_softmax(1)
        divergences.append((soft[rows] * (soft[rows].log() - p)).sum(1).mean())
    embedded = student.projector(features_of(student.model)(torch.cat([first, second])))
    return sum(divergences) / 2 + contrast(embedded)


def begin(table):
    """Teacher and student before the first round."""
    strategy = server_strategy(table(), Dots())
    with seeded(SEED, "initialise"):
        strategy.initialize()
    return strategy


def base_loss(workload, student, server_round, step):
    with seeded(SEED, "source", server_round, step):
        batch = workload.data(None, "train").sample_batch(BATCH)
    return cross_entropy(student.model(batch["x"]), batch["y"])


def soft_labels(teacher, x):
    with torch.no_grad():
        return teacher(x).softmax(1) + 1e-6


def compare(state, student, atol=1e-5):
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(state["strategy"]["student"][name], tensor, atol=atol, rtol=0)
    for name, tensor in student.model.state_dict().items():
        torch.testing.assert_close(state["arrays"][name], tensor, atol=atol, rtol=0)


def test_two_federated_rounds_are_those_of_the_plain_loop(federate, table):
    workload, begun = Dots(), begin(table)
    student, teacher = begun.student, deepcopy(begun.teacher).eval()
    for server_round in (1, 2):
        plain = Plain(student)
        for step in range(R_S):
            plain.step(base_loss(workload, student, server_round, step), rate(server_round))
        found = []
        for client in range(2):
            local = deepcopy(student)
            data = workload.data(client, "train")
            x, plain = data.columns["x"], Plain(local)
            with seeded(SEED, "train", server_round, client):
                startup.Student(workload.model(), True)  # a client builds its student before it loads: that draws
                for _ in range(R_C):
                    rows = torch.randint(len(x), (BATCH,))
                    first, second = workload.view(x[rows]), workload.view(x[rows])
                    plain.step(target_loss(local, x, rows, soft_labels(teacher, x), first, second), rate(server_round))
            found.append((len(x), local.state_dict()))
        total = sum(count for count, _ in found)
        student.load_state_dict({name: sum(n * s[name] for n, s in found) / total for name in student.state_dict()})
    compare(final(federate()), student)


def test_centralized_steps_are_the_sum_of_the_three_losses_on_everybodys_images(federate, table):
    workload, begun = Dots(), begin(table)
    student, teacher = begun.student, deepcopy(begun.teacher).eval()
    x = torch.cat([workload.data(client, "train").columns["x"] for client in range(2)])
    for server_round in (1, 2):
        plain = Plain(student)
        for step in range(R_S):
            loss = base_loss(workload, student, server_round, step)
            with seeded(SEED, "target", server_round, step):
                rows = torch.randint(len(x), (BATCH,))
                first, second = workload.view(x[rows]), workload.view(x[rows])
            loss = loss + target_loss(student, x, rows, soft_labels(teacher, x), first, second)
            plain.step(loss, rate(server_round))
    directory = federate(**{"startup.setting": "centralized"})
    compare(final(directory), student)
    for line in directory.rounds():
        assert all(moved["train_down"] == moved["train_up"] == 0 for moved in line["bytes"].values())


def test_dynamic_distillation_steps_are_those_of_the_plain_loop(federate, table):
    changes = {
        "startup.contrastive_weight": 0.0,
        "startup.teacher_ema": 0.9,
        "startup.inverse_temperature": 10.0,
        "startup.start": "whole",
        "startup.distillation_warmup": True,
        "startup.base_weight": 0.0,
        "rounds": 1,
    }
    workload = Dots()
    strategy = server_strategy(table(**changes), workload)
    with seeded(SEED, "initialise"):
        strategy.initialize()
    same = zip(strategy.student.model.parameters(), strategy.teacher.parameters(), strict=True)
    assert all(torch.equal(weight, taught) for weight, taught in same)
    found = []
    for client in range(2):
        local, teacher = deepcopy(strategy.student), deepcopy(strategy.teacher).eval()
        x, plain = workload.data(client, "train").columns["x"], Plain(local)
        with seeded(SEED, "train", 1, client):
            startup.Student(workload.model(), False)
            for _ in range(R_C):
                rows = torch.randint(len(x), (BATCH,))
                first, second = workload.view(x[rows]), workload.view(x[rows])
                with torch.no_grad():
                    target = (10 * teacher(workload.view(x[rows], weak=True))).softmax(1) + 1e-6
                crossed = [-(target * local.model(view).log_softmax(1)).sum(1).mean() for view in (first, second)]
                plain.step(0.75 * sum(crossed) / 2, RATE)  # half of the only round: 3/4 (1 - cos(pi / 2))
                with torch.no_grad():
                    for slow, fast in zip(teacher.parameters(), local.model.parameters(), strict=True):
                        slow.copy_(0.9 * slow + 0.1 * fast)
        found.append((len(x), local.state_dict()))
    total = sum(count for count, _ in found)
    mean = {name: sum(n * s[name] for n, s in found) / total for name in strategy.student.state_dict()}
    strategy.student.load_state_dict(mean)
    state = final(federate(**changes))
    compare(state, strategy.student)
    for name, slow in strategy.teacher.state_dict().items():
        wanted = 0.9**R_C * slow + (1 - 0.9**R_C) * mean[f"model.{name}"]
        torch.testing.assert_close(state["strategy"]["teacher"][name], wanted, atol=1e-5, rtol=0)


def test_the_student_starts_with_the_backbone_of_the_teacher_and_a_fresh_head(table):
    for start, backbone, head in (("backbone", True, False), ("whole", True, True), ("fresh", False, False)):
        strategy = server_strategy(table(**{"startup.start": start}), Dots())
        strategy.initialize()
        student, teacher = strategy.student.model, strategy.teacher
        assert torch.equal(student.features[0].weight, teacher.features[0].weight) is backbone
        assert torch.equal(student.head.weight, teacher.head.weight) is head


def test_without_any_step_the_student_stays_as_it_began(federate, table):
    changes = {"server.steps": 0, "client.steps": 0, "rounds": 1}
    directory = federate(**changes)
    assert directory.rounds()[1]["clients"] == directory.rounds()[0]["clients"]
    assert all(moved["train_down"] == 0 for moved in directory.rounds()[1]["bytes"].values())


@pytest.mark.parametrize("soft", ["hard", "reverse_kl", "reverse_cross_entropy", "entropy", "none"])
def test_every_loss_trains_and_they_differ(federate, soft):
    plain, other = federate(rounds=1), federate(rounds=1, **{"startup.distillation_loss": soft})
    assert other.manifest()["weights_sha256"] != plain.manifest()["weights_sha256"]
    assert np.isfinite(other.rounds()[1]["server"]["client_loss"])
    sent = [run.rounds()[1]["bytes"]["a"]["train_down"] for run in (plain, other)]
    assert (sent[1] < sent[0]) is (soft == "none")  # a teacher that nobody asks stays at home


def test_shuffled_labels_say_nothing_about_an_image(federate):
    shuffled = federate(rounds=1, **{"startup.shuffle": True})
    assert shuffled.manifest()["weights_sha256"] != federate(rounds=1).manifest()["weights_sha256"]


def test_no_projector_travels_where_nothing_is_contrasted(federate):
    state = final(federate(rounds=1, **{"startup.contrastive_weight": 0.0}))
    assert not [name for name in state["strategy"]["student"] if name.startswith("projector")]


@pytest.mark.parametrize("rule", ["fedmedian", "fedadam", "dp_fixed"])
def test_any_rule_puts_the_students_together_projector_and_all(federate, rule):
    plain, ruled = (final(federate(**{"startup.aggregation": name}))["strategy"] for name in ("fedavg", rule))
    assert plain["student"].keys() == ruled["student"].keys()
    learned = [name for name in plain["student"] if name.endswith("weight")]
    assert any(name.startswith("projector") for name in learned)
    assert not any(torch.equal(plain["student"][name], ruled["student"][name]) for name in learned)
    assert bool(ruled["rule"]) == (rule != "fedmedian")  # moments, releases: in the checkpoint


def test_a_rule_that_needs_the_clients_labels_is_refused(table):
    with pytest.raises(ConfigError, match="'qfedavg' weighs clients by their loss, and clients of strategy 'startup'"):
        server_strategy(table(**{"startup.aggregation": "qfedavg"}), Dots())


def test_clients_test_before_after_and_every_so_many_rounds(federate):
    def tested(**changes):
        return [line["round"] for line in federate(rounds=5, **changes).rounds() if line["clients"]]

    assert tested() == [0, 5]
    assert tested(**{"startup.evaluate_every": 2}) == [0, 2, 4, 5]


def test_it_resumes_to_the_same_bits(federate, table, monkeypatch):
    changes = {"startup.teacher_ema": 0.9, "startup.aggregation": "fedadam"}
    whole = federate(**changes)
    conclude = Checkpoints.save

    def stop(self, server_round, state, *how_many):
        conclude(self, server_round, state, *how_many)
        if server_round == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        federate(**changes)
    monkeypatch.undo()
    import fedlab

    put(monkeypatch, "workload", "dots", WorkloadSpec(Dots))
    stopped = max(whole.path.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    assert stopped != whole.path
    assert fedlab.resume(stopped).weights_sha256 == whole.manifest()["weights_sha256"]


def test_what_cannot_be_taught_is_refused(table):
    with pytest.raises(ConfigError, match=r"startup needs a model with .features and a linear .head; Net of workload"):
        server_strategy(table(), Dots(linear_head=False))

    class Sightless:
        def __init__(self, seen):
            self.model, self.data, self.loss, self.clients = seen.model, seen.data, seen.loss, seen.clients

    with pytest.raises(ConfigError, match="startup needs a workload that makes views of its inputs; 'dots' has no"):
        server_strategy(table(), Sightless(Dots()))
    with pytest.raises(ConfigError, match=r"option 'startup.distillation_loss'.*got 'kll'"):
        table(**{"startup.distillation_loss": "kll"})


def test_a_reply_that_is_no_student_is_refused(table):
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

    from fedlab.strategies.protocol import metrics_record

    strategy = begin(table)
    good = strategy.student.state_dict()
    strategy.updates.send(ArrayRecord(good), ConfigRecord())

    class Reply:
        def __init__(self, arrays, **more):
            self.content = RecordDict(
                {"arrays": ArrayRecord(arrays), "metrics": metrics_record({}, 3), "config": ConfigRecord(), **more}
            )

    strategy.check(Reply(good))
    with pytest.raises(InvalidUpdate, match="other names"):
        strategy.check(Reply(dict(strategy.student.model.state_dict())))
    with pytest.raises(InvalidUpdate, match="holds NaN"):
        strategy.check(Reply({name: tensor * float("nan") for name, tensor in good.items()}))
    with pytest.raises(InvalidUpdate, match="its records and metrics are"):
        strategy.check(Reply(good, teacher=ArrayRecord(good)))
