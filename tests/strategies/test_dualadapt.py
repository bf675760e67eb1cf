"""DualAdapt beside the same method written as plain loops, and what must hold of it whatever the data."""

from __future__ import annotations

import copy

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from torch import nn
from torch.nn.functional import cross_entropy

from fedlab import launch, registry
from fedlab.comm.grid import PartitionGrid
from fedlab.comm.roster import Roster
from fedlab.config.sections import parse_section
from fedlab.config.training_options import ClientConfig
from fedlab.data.random_batches import joined
from fedlab.engines import flower_internals, inprocess
from fedlab.engines.client_host import ClientHost, node_partitions
from fedlab.errors import ConfigError
from fedlab.models import em, gaussian_mixture
from fedlab.runs.checkpoints import weights_sha256
from fedlab.seeds import seeded
from fedlab.strategies.dualadapt import evaluate, local_head
from fedlab.strategies.dualadapt.server_loss import pseudo_targets, server_loss
from fedlab.strategies.dualadapt.shared import QUANTILES, Options
from fedlab.strategies.protocol import METRICS, ClientContext, arrays_of
from tables import client_functions, server_strategy
from toy import SMALL, Blobs, Net


def config(strategy="dualadapt", **changes):
    """Configuration of a run; the workload that it names is not used."""
    return registry.load_config({**SMALL, "workload": "digits", "strategy": strategy}, changes)


class Federation:
    """The rounds of one strategy on blobs through the in-process grid, with the apps' seed scopes."""

    def __init__(self, config, workload=None):
        self.config, self.workload = config, workload or Blobs()
        self.strategy = server_strategy(config, self.workload)
        self.sent, self.replies = [], []

    def client(self, message, context):
        half, partition = client_functions(self.config.run.strategy), context.node_config["partition-id"]
        if message.metadata.message_type == MessageType.QUERY:
            identity = ConfigRecord({"partition": partition})
            return Message(RecordDict({"identity": identity}), reply_to=message)
        local = half.train if message.metadata.message_type == MessageType.TRAIN else half.evaluate
        with seeded("client", partition):
            return Message(local(self.workload, message, ClientContext(partition, self.config)), reply_to=message)

    def grid(self):
        grid = inprocess.InProcessGrid(ClientHost(self.client, {}, node_partitions(len(self.workload.clients))))
        found = PartitionGrid(Roster(grid, {0: "near", 1: "far"}), min_clients=2)
        found.wait_for_clients(0, 5)
        return found

    def run(self, rounds):
        identity = flower_internals.TaskIdentity
        identity.run_id, identity.node_id, identity.task_id = 1, 1, 1
        grid = self.grid()
        with seeded("initialise"):
            arrays = self.strategy.initialize()
        for number in range(1, rounds + 1):
            with seeded("round", number):
                self.sent = list(self.strategy.configure_train(number, arrays, ConfigRecord(), grid))
                self.replies = grid.send_and_receive(self.sent)
                arrays = self.strategy.aggregate_train(number, self.replies)[0] or arrays
        self.arrays, self.roster = arrays, grid
        return self


def test_one_server_step_is_the_plain_loop_over_clients_and_examples():
    federation = Federation(config(**{"server.steps": 1, "dualadapt.server_discrepancy": 3.0})).run(1)
    half = federation.strategy
    model = half.trainer.model.train()
    loss = server_loss(half.trainer, half.heads, half.mixtures, half.options, 2)
    value = loss(0)

    with seeded(half.seed, "pseudo-targets", 2, 0):
        x = (half.trainer.random_batch()["x"] + half.trainer.random_batch()["x"]) / 2
    z = model.features(x).detach()
    p = model.head(z).softmax(1).detach()
    total = 0.0
    for partition in (0, 1):
        local = Net().head
        local.load_state_dict(half.heads[partition])
        mixture = gaussian_mixture.GaussianMixture.from_arrays(half.mixtures[partition])
        reference = half.mixtures[partition]["quantiles"]
        density = mixture.log_prob(z)
        typical = [(1 + sum(float(r) <= float(v) for r in reference)) / (1 + len(reference)) for v in density.detach()]
        mean = sum(typical) / len(typical)
        for row in range(len(x)):
            q = local(z[row : row + 1]).softmax(1)[0].detach()
            total += typical[row] / mean * float((p[row] - q).abs().sum()) / len(x) / 2
    assert float(value.detach()) == pytest.approx(3.0 * total, rel=1e-4)


def test_the_discrepancy_moves_the_features_and_not_the_global_head():
    half = Federation(config()).run(1).strategy
    model = half.trainer.model.train()
    running = copy.deepcopy(model.features[2].running_mean)
    model.zero_grad()
    server_loss(half.trainer, half.heads, half.mixtures, half.options, 2)(0).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.features[1].parameters())
    assert all(weight.grad is None or not weight.grad.any() for weight in model.head.parameters())
    assert torch.equal(running, model.features[2].running_mean)  # pseudo-targets leave no trace in the statistics


@pytest.mark.parametrize("batches", [1, 2])
def test_separate_steps_are_one_on_the_discrepancy_and_then_one_on_the_source(batches):
    options = {"server.steps": 1, "dualadapt.server_steps": "separate", "dualadapt.server_discrepancy": 3.0}
    options |= {"server.accumulate_steps": batches}
    half = Federation(config(**options)).run(1).strategy
    wanted = Federation(config(**options)).run(1).strategy.trainer
    half._steps(2, {0, 1})

    wanted.model.train()
    term = server_loss(wanted, half.heads, half.mixtures, half.options, 2)
    numbers, source = iter(range(batches)), wanted.loss(2, batches)
    for loss in (lambda: term(next(numbers)), source):
        wanted.optimizer.zero_grad()
        for _ in range(batches):
            loss().backward()
        for weight in wanted.model.parameters():
            if weight.grad is not None:
                weight.grad /= batches
        wanted.optimizer.step()
    assert weights_sha256(half.trainer.model.state_dict()) == weights_sha256(wanted.model.state_dict())
    joint = Federation(config(**{**options, "dualadapt.server_steps": "joint"})).run(1).strategy
    joint._steps(2, {0, 1})
    assert weights_sha256(joint.trainer.model.state_dict()) != weights_sha256(wanted.model.state_dict())


def test_the_local_head_is_the_plain_loop():
    torch.manual_seed(0)
    head, z = Net().head, torch.randn(40, 8)
    source = em.fit(torch.randn(60, 8), 2, variance_floor=1e-2)
    quantiles = torch.linspace(-30, 0, 20).double()
    settings = Options(components=2, pseudo_labels="global", class_balance=0.0, client_discrepancy=0.0)
    training = parse_section(ClientConfig, "client", {}, steps=3, batch_size=10, learning_rate=0.01)
    with seeded("loop"):
        local, mixture, loss = local_head.adapt_head(head, z, source, quantiles, settings, training)

    expected = copy.deepcopy(head)
    optimizer = torch.optim.Adam(expected.parameters(), 0.01)
    cosine = [0.01, 0.0075, 0.0025]  # 0.005 (1 + cos(pi t / 3))
    p = head(z).softmax(1).detach()
    rank = [(1 + sum(float(r) <= float(v) for r in quantiles)) / 21 for v in source.log_prob(z)]
    running, losses = source.statistics(), []
    with seeded("loop"):
        for step in range(3):
            rows = torch.randint(40, (10,))
            value = torch.tensor(0.0)
            for row in rows.tolist():
                weight = rank[row] / (sum(rank) / 40)
                logits = expected(z[row : row + 1])
                value = value + weight * cross_entropy(logits, p[row : row + 1].argmax(1)) / 10
            batch = em.e_step(em.m_step(running, 1e-2), z[rows])
            running = em.blend(running, batch, (step + 2) ** -0.7)
            losses.append(float(value.detach()))
            optimizer.param_groups[0]["lr"] = cosine[step]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for got, wanted in zip(local.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(got, wanted, atol=1e-5)
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert torch.allclose(mixture.means, em.m_step(running, 1e-2).means)


def test_the_local_loss_is_the_plain_sum_over_examples():
    torch.manual_seed(0)
    logits, other, weights = torch.randn(6, 3), torch.randn(6, 3).softmax(1), torch.rand(6)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    total = 0.0
    for row in range(6):
        q = logits[row].softmax(0)
        total -= float(weights[row] * q[labels[row]].log()) / 6
        total -= 0.2 * sum(abs(float(other[row, k] - q[k])) for k in range(3)) / 6
    assert float(local_head.local_loss(logits, labels, weights, other, 0.2)) == pytest.approx(total, rel=1e-5)


def test_without_the_server_discrepancy_the_server_is_its_own_control_bit_for_bit():
    half = Federation(config(**{"dualadapt.server_discrepancy": 0.0})).run(3).strategy
    assert weights_sha256(half.trainer.state()) == weights_sha256(half.baseline.state())


def test_with_it_the_server_is_not():
    half = Federation(config()).run(2).strategy
    assert weights_sha256(half.trainer.model.state_dict()) != weights_sha256(half.baseline.model.state_dict())


@pytest.mark.parametrize("weight", [0.2, 0.0])
def test_the_control_is_the_strategy_source_only_bit_for_bit(weight):
    server = Federation(config(**{"dualadapt.server_discrepancy": weight})).run(3).strategy
    control = server.baseline
    assert (control is server.trainer) == (weight == 0)  # and is not trained twice
    alone = Federation(config("source_only")).run(3).strategy.trainer
    assert weights_sha256(control.state()) == weights_sha256(alone.state())


def test_what_crosses_the_wire():
    federation = Federation(config()).run(1)
    assert set(federation.sent[0].content) == {"arrays", "mixture", "config"}
    for reply in federation.replies:
        assert set(reply.content) == {"head", "mixture", "metrics"}
        assert set(reply.content["head"]) == set(Net().head.state_dict())
        assert set(reply.content["metrics"]) == {"loss", "entropy", "discrepancy", "num-examples"}
        width = sum(array.numel() for array in arrays_of(reply.content, "mixture").values())
        assert width <= 2 * (1 + 8 + 8) + QUANTILES  # components x (weight, mean, variance), and the summary


def test_features_are_computed_once_a_round_however_many_steps(monkeypatch):
    seen = []
    forward = nn.Flatten.forward
    monkeypatch.setattr(nn.Flatten, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    federation = Federation(config(**{"client.steps": 50})).run(1)
    seen.clear()
    grid = federation.roster
    grid.send_and_receive(federation.sent[:1])
    assert sum(seen) == 90 + 90  # own statistics, then features; 50 steps add nothing


@pytest.mark.parametrize("option", ["client_weights", "server_weights", "source_only_twin", "bn_adaptation"])
def test_each_switch_changes_what_it_says(option):
    on, off = (Federation(config(**{f"dualadapt.{option}": value})).run(2) for value in (1, 0))
    same = weights_sha256(on.arrays.to_torch_state_dict()) == weights_sha256(off.arrays.to_torch_state_dict())
    assert same == (option == "source_only_twin")


@pytest.mark.parametrize("mixup", ["difference", "off"])
def test_each_form_of_pseudo_targets_is_another_run(mixup):
    average, other = (Federation(config(**{"dualadapt.mixup": form})).run(2) for form in ("average", mixup))
    assert weights_sha256(average.strategy.state()) != weights_sha256(other.strategy.state())


def test_pseudo_targets_are_what_they_say():
    for mixup in ("average", "difference", "off"):
        half = server_strategy(config(**{"dualadapt.mixup": mixup}), Blobs())
        batches = half.trainer.batches
        x = pseudo_targets(batches, mixup, joined(batches.draw_several_at(2, "x")))
        with seeded("x"):
            first, second = half.trainer.random_batch()["x"], half.trainer.random_batch()["x"]
        wanted = {"average": (first + second) / 2, "difference": (first - second).abs() - 1, "off": first}[mixup]
        assert torch.equal(x, wanted)


def test_global_local_average_last_and_control_are_reported_from_the_round_after_the_first_heads():
    federation = Federation(config()).run(1)
    half, grid = federation.strategy, federation.roster
    messages = list(half.configure_evaluate(SMALL["rounds"], federation.arrays, ConfigRecord(), grid))
    metrics = dict(grid.send_and_receive(messages)[0].content[METRICS])
    names = {f"accuracy_{name}" for name in ("global", "local", "average", "last", "source_only")}
    assert set(metrics) == names | {"num-examples"}
    half.heads.clear()
    before = grid.send_and_receive(list(half.configure_evaluate(0, federation.arrays, ConfigRecord(), grid)))
    assert set(before[0].content[METRICS]) == {"accuracy_global", "accuracy_source_only", "num-examples"}


def test_a_restored_half_goes_on_to_the_same_bits():
    whole = Federation(config()).run(3)
    begun = Federation(config()).run(2)
    state = copy.deepcopy(begun.strategy.state())
    resumed = Federation(config())
    resumed.strategy.restore(state)
    grid = resumed.grid()
    with seeded("round", 3):
        messages = list(resumed.strategy.configure_train(3, begun.arrays, ConfigRecord(), grid))
        arrays, _ = resumed.strategy.aggregate_train(3, grid.send_and_receive(messages))
    assert weights_sha256(resumed.strategy.state()) == weights_sha256(whole.strategy.state())
    assert weights_sha256(arrays.to_torch_state_dict()) == weights_sha256(whole.arrays.to_torch_state_dict())


def test_a_client_that_failed_keeps_its_last_head():
    federation = Federation(config()).run(1)
    half = federation.strategy
    old = half.heads[1]
    half.aggregate_train(2, federation.replies[:1])
    assert half.heads[1] is old


def test_a_model_without_features_and_head_is_refused_in_a_sentence():
    with pytest.raises(
        ConfigError, match=r"needs a model with \.features and \.head; Linear .* lacks features and head"
    ):
        server_strategy(config(), Blobs(headless=True))


def test_it_serves_a_head_with_batch_norm_and_dropout(monkeypatch):
    class Deep(Net):
        def __init__(self, linear=False):
            super().__init__()
            self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    monkeypatch.setattr("toy.Net", Deep)
    half = Federation(config()).run(2).strategy
    assert all(torch.isfinite(value).all() for head in half.heads.values() for value in head.values())


def test_balance_evens_out_the_classes_of_pseudo_labels():
    torch.manual_seed(0)
    p = torch.randn(300, 3).mul(2).add(torch.tensor([1.0, 0.0, 0.0])).softmax(1)
    z = torch.randn(300, 8)
    raw, even = (
        local_head.pseudo_labels(z, p, Options(pseudo_labels="global", class_balance=b)).bincount(minlength=3)
        for b in (0.0, 1.0)
    )
    assert even.max() - even.min() < raw.max() - raw.min()


def test_the_context_says_the_partition():
    context = ClientContext(1, config())
    arrays = ArrayRecord(Net().state_dict())
    message = Message(RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 0})}), 5, "evaluate")
    reply = evaluate(Blobs(), message, context)
    assert reply[METRICS]["num-examples"] == 90


def test_a_workload_that_tests_new_classes_is_refused():
    with pytest.raises(
        ConfigError, match="workload 'fewshot' tests classes that the server has never seen; use startup"
    ):
        launch.prepare("startup-omniglot", {"strategy": "dualadapt"})
