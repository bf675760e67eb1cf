from warnings import catch_warnings as recorded
from warnings import simplefilter

import pytest
import torch
from torch import nn

from fedlab.cuda_graphs import GraphedLoss, KeptModels, NotCapturedWarning, fresh_leaves, in_order_of, views_like
from fedlab.models.side_by_side import side_by_side
from fedlab.optimizers import Adam, FusedAdam
from fedlab.seeds import deterministic, seeded

BATCHES = [{"x": torch.randn(6, 4, generator=torch.Generator().manual_seed(number))} for number in range(5)]


def loss_of(model, batch):
    """A loss with noise of the device, as diffusion models have."""
    x = batch["x"]
    return (model(x + torch.randn_like(x)) - x).square().mean()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 4))


def trained(device, graphs, loss=loss_of, extra=None):
    model = network().to(device)
    objective, losses = GraphedLoss(loss, model, graphs), []
    optimizer = Adam(model.parameters(), 0.01)
    with deterministic(1), seeded(3, "training"):
        for batch in BATCHES:
            value = objective({name: column.to(device) for name, column in batch.items()})
            value = value + extra(model) if extra else value
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.detach())
    return torch.stack(losses).cpu(), {name: value.cpu() for name, value in model.state_dict().items()}, objective


def same(one, other):
    return torch.equal(one[0], other[0]) and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_on_a_cpu_the_loss_is_computed_as_usual():
    losses, state, objective = trained("cpu", graphs=True)
    model = network()
    optimizer, plain = Adam(model.parameters(), 0.01), []
    with deterministic(1), seeded(3, "training"):
        for batch in BATCHES:
            value = loss_of(model, batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            plain.append(value.detach())
    assert same((losses, state), (torch.stack(plain), model.state_dict()))
    assert objective.refused == ""


class NoGraph:
    """Stands for a capture on a machine without a GPU; some kinds of batches cannot be captured."""

    refused: tuple[str, ...] = ()
    device = torch.device("cpu")

    def __init__(self, loss, model, batch):
        if any(name in self.refused for name in batch):
            raise RuntimeError("operation not permitted\nwhen a stream is capturing")
        self.loss, self.weights, self.flat = loss, [], torch.empty(0)
        self.trigger = torch.zeros((), requires_grad=True)

    def replay(self, batch):
        return self.loss(batch).detach() + 1000  # so that one sees it


@pytest.mark.parametrize(
    ("refused", "graphs", "warnings"), [((), 3, 0), (("raw",), 2, 1), (("raw", "x"), 0, 2)], ids=["none", "raw", "both"]
)
def test_a_preparation_that_cannot_be_captured_is_computed_before_the_graph(monkeypatch, refused, graphs, warnings):
    prepared = []

    def prepare(batch):
        prepared.append(1)
        return {"x": batch["raw"] / 2}

    monkeypatch.setattr("fedlab.cuda_graphs._Capture", NoGraph)
    monkeypatch.setattr("fedlab.cuda_graphs.end_failed_capture", lambda device: None)
    monkeypatch.setattr(GraphedLoss, "_may_be_captured", lambda self, batch: True)
    monkeypatch.setattr(NoGraph, "refused", refused)
    model = nn.Linear(2, 1)
    objective = GraphedLoss(lambda net, batch: net(batch["x"]).sum(), model, prepare=prepare)
    values, told = [], []
    for number in range(4):
        with recorded(record=True) as seen:
            simplefilter("always")
            values.append(float(objective({"raw": torch.full((3, 2), float(number))}).detach()))
        told += [one for one in seen if issubclass(one.category, NotCapturedWarning)]
    plain = [float(model(torch.full((3, 2), number / 2)).sum().detach()) for number in range(4)]
    assert [value - 1000 * (value > 500) for value in values] == pytest.approx(plain, abs=1e-3)
    assert sum(value > 500 for value in values) == graphs
    assert len(told) == warnings
    assert len(prepared) == 4 + (warnings == 2)  # the batch of the second refusal is prepared again
    assert bool(objective.refused) == (warnings == 2) and objective.prepares_before == (warnings > 0)


def test_kept_models_are_the_last_ones():
    kept, made = KeptModels(2), []

    def make():
        made.append(len(made))
        return GraphedLoss(loss_of, network())

    first = kept.get("a", make)
    assert kept.get("a", make) is first
    kept.get("b", make)
    kept.get("a", make)
    kept.get("c", make)
    assert kept.get("a", make) is first
    assert len(made) == 3
    kept.get("b", make)
    assert len(made) == 4


def test_two_parts_side_by_side_give_both_results_in_order():
    called = []
    assert side_by_side(lambda: called.append(1) or "a", lambda: called.append(2) or "b") == ("a", "b")
    assert called == [1, 2]


def test_gradients_in_one_row_come_back_with_the_strides_of_their_weights():
    rows = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    weights = [rows.weight, rows.bias, nn.Linear(5, 2).weight, nn.Conv2d(2, 3, 1).weight, torch.ones(4, 3).t()]
    gradients = [torch.randn(weight.shape) for weight in weights]
    flat = torch.cat([in_order_of(weight, part) for weight, part in zip(weights, gradients, strict=True)])
    for weight, gradient, found in zip(weights, gradients, views_like(weights, flat), strict=True):
        assert torch.equal(found, gradient)
        assert found.stride() == weight.stride()


def test_fresh_leaves_share_memory_and_the_old_ones_come_back():
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight  # tied
    model[0].bias.requires_grad_(False)
    before = dict(model.named_parameters())
    with fresh_leaves(model) as leaves:
        for name, weight in model.named_parameters():
            assert weight is leaves[before[name]] is not before[name]
            assert weight.data_ptr() == before[name].data_ptr()
            assert weight.requires_grad == before[name].requires_grad
        assert model[2].weight is model[0].weight
        hidden, _ = model[1](model[0](torch.ones(2, 3)))
        model[2](hidden).sum().backward()
        assert leaves[before["0.weight"]].grad is not None
        assert leaves[before["1.weight_hh_l0"]].grad is not None
    assert all(weight is before[name] for name, weight in model.named_parameters())
    assert all(weight.grad is None for weight in before.values())


def test_old_leaves_come_back_after_an_error():
    model = nn.Linear(2, 2)
    before = list(model.parameters())

    def fail():
        with fresh_leaves(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(weight is old for weight, old in zip(model.parameters(), before, strict=True))


@pytest.mark.gpu
def test_fused_adam_takes_the_gradients_of_a_graph_whatever_the_layout_of_weights():
    layers = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2)
    model = nn.Sequential(*layers).to("cuda", memory_format=torch.channels_last)
    batch = {"x": torch.randn(6, 3, 5, 5, device="cuda")}
    objective = GraphedLoss(lambda net, some: net(some["x"]).square().mean(), model)
    optimizer = FusedAdam(model.parameters(), 0.01)
    losses = []
    for _ in range(4):
        value = objective(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert objective.refused == ""
    assert losses == sorted(losses, reverse=True)


@pytest.mark.gpu
def test_a_graph_has_the_bits_of_single_kernels_and_changes_no_buffer_by_its_capture():
    graph, plain = trained("cuda", graphs=True), trained("cuda", graphs=False)
    assert graph[2].refused == ""  # though the loss of the step before is still alive at the capture
    assert same(graph, plain)


@pytest.mark.gpu
def test_a_term_can_be_added_to_a_graph():
    def penalty(model):
        return 0.1 * sum(weight.square().sum() for weight in model.parameters())

    with_graph, without = (trained("cuda", graphs=graphs, extra=penalty) for graphs in (True, False))
    assert torch.allclose(with_graph[0], without[0], rtol=1e-6)


@pytest.mark.gpu
def test_parts_side_by_side_in_a_graph_have_the_bits_of_one_after_the_other():
    def both(model, batch):
        one, other = side_by_side(lambda: model(batch["x"]), lambda: model[0](batch["x"]).square())
        return one.square().mean() + other.mean()

    assert same(trained("cuda", graphs=True, loss=both), trained("cuda", graphs=False, loss=both))


@pytest.mark.gpu
def test_a_preparation_that_waits_for_the_gpu_is_computed_before_the_graph():
    def prepare(batch):
        return {"x": batch["x"] * 2 if float(batch["x"].sum()) > 1e9 else batch["x"]}

    model = network().to("cuda")
    objective = GraphedLoss(loss_of, model, prepare=prepare)
    first, second, *others = ({"x": batch["x"].to("cuda")} for batch in BATCHES)
    objective(first).backward()
    with pytest.warns(NotCapturedWarning, match="before the model"):
        objective(second)
    for batch in others:
        objective(batch).backward()
    assert objective.prepares_before and objective.refused == ""


@pytest.mark.gpu
def test_a_loss_that_waits_for_the_gpu_is_computed_as_usual():
    def waits(model, batch):
        value = loss_of(model, batch)
        return value if float(value) >= 0 else -value

    graph, plain = (trained("cuda", graphs=graphs, loss=waits) for graphs in (True, False))
    assert graph[2].refused
    assert same(graph, plain)
