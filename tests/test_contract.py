"""What every workload owes every strategy, whatever it learns; one line in the table of workloads is tested here."""

from __future__ import annotations

import math

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.runs.checkpoints import weights_sha256
from fedlab.seeds import seeded
from fedlab.workload import SupportsScoring, SupportsViews, Workload, missing_columns

FEW = 12


def few(examples):
    """The first examples of a data set, with its transform."""
    return ArrayDataset({name: column[:FEW] for name, column in examples.columns.items()}, examples.transform)


SOME = 300  # enough to test on, of however many classes
# Options that only make testing cheap; all else is at its default.
CHEAP = {
    "fewshot": {"fewshot.shots": "1", "fewshot.queries": 5, "fewshot.episodes": 20},
    "generation": {"data.max_examples": 100, "generation.samples": 20, "generation.sampling_steps": 10},
    "molecules": {"data.max_examples": 600, "molecules.adjacency_layers": 9, "molecules.node_layers": 9},
}


@pytest.fixture(params=list(registry.WORKLOADS))
def workload(request):
    return registry.load_config({"workload": request.param}, CHEAP.get(request.param)).workload


@pytest.fixture
def model(workload):
    with seeded("contract"):
        return workload.model()


def test_it_speaks_the_protocol_and_names_its_clients(workload):
    assert isinstance(workload, Workload)
    assert len(set(workload.clients)) == len(workload.clients) > 0
    assert all(isinstance(name, str) and name for name in workload.clients)


def test_a_model_is_a_function_of_the_random_stream(workload, model):
    with seeded("contract"):
        again = workload.model()
    with seeded("another"):
        other = workload.model()
    assert again is not model
    assert weights_sha256(again.state_dict()) == weights_sha256(model.state_dict())
    assert weights_sha256(other.state_dict()) != weights_sha256(model.state_dict())


def test_data_come_batch_by_batch_the_same_for_the_same_stream(workload):
    for partition in (None, *range(len(workload.clients))):
        for split in ("train", "test"):
            data = few(workload.data(partition, split))
            assert len(data) > 0
            with seeded("batch"):
                batch = data.sample_batch(4)
            with seeded("batch"):
                again = data.sample_batch(4)
            assert all(len(column) == 4 for column in batch.values())
            assert all(torch.equal(batch[name], again[name]) for name in batch)
            assert all(torch.isfinite(column).all() for column in batch.values())


def test_views_are_random_and_have_the_shape_of_the_inputs(workload):
    if not isinstance(workload, SupportsViews):
        pytest.skip("it has no views")
    x = few(workload.data(0, "train"))[:]["x"]
    for weak in (False, True):
        with seeded("view"):
            first, second = workload.view(x, weak), workload.view(x, weak)
        assert first.shape == x.shape and first.isfinite().all()
        assert not torch.equal(first, second)
        with seeded("view"):
            assert torch.equal(workload.view(x, weak), first)


def test_the_loss_is_a_finite_scalar_and_every_weight_gets_a_gradient(workload, model):
    with seeded("loss"):
        value = workload.loss(model.train(), few(workload.data(None, "train")).sample_batch(8))
    assert value.shape == ()
    assert math.isfinite(value.item())
    value.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
    assert any(weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_a_few_steps_on_one_batch_lower_the_loss(workload, model):
    with seeded("loss"):
        batch = few(workload.data(None, "train")).sample_batch(8)
        optimizer = torch.optim.Adam(model.train().parameters(), 1e-3)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            losses.append(workload.loss(model, batch))
            losses[-1].backward()
            optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("partition", [None, 0])
def test_metrics_are_plain_finite_floats_and_testing_changes_no_weight(workload, model, partition):
    data = workload.data(partition, "test").subsample(SOME)
    before = weights_sha256(model.state_dict())
    metrics = workload.evaluate(model, data)
    assert metrics
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert weights_sha256(model.state_dict()) == before
    assert workload.evaluate(model, data) == metrics


def test_its_state_survives_the_wire_and_gives_the_same_metrics(workload, model):
    sent = RecordDict({"arrays": ArrayRecord(model.state_dict())})
    received = recorddict_from_proto(recorddict_to_proto(sent))["arrays"].to_torch_state_dict()
    assert weights_sha256(received) == weights_sha256(model.state_dict())
    with seeded("another"):
        other = workload.model()
    other.load_state_dict(received)
    data = workload.data(0, "test").subsample(SOME)
    assert workload.evaluate(other, data) == workload.evaluate(model, data)


PNG = b"\x89PNG"


def test_the_server_can_learn_and_every_client_can_be_tested(workload):
    assert not missing_columns(workload, workload.data(None, "train"))
    for partition in range(len(workload.clients)):
        assert not missing_columns(workload, workload.data(partition, "test"))


def test_scores_are_plain_finite_floats_of_the_model_alone(workload, model):
    if not isinstance(workload, SupportsScoring):
        pytest.skip("it scores nothing beside its metrics")
    before = weights_sha256(model.state_dict())
    with seeded("score"):
        found = workload.score(model.eval())
    assert found.metrics and all(type(value) is float and math.isfinite(value) for value in found.metrics.values())
    assert all(png.startswith(PNG) for png in found.pictures.values())
    with seeded("score"):
        assert workload.score(model) == found
    assert weights_sha256(model.state_dict()) == before


def test_targets_are_unlabeled(workload):
    """In the setting that this tool is for, which is every workload's default, no client trains on labels."""
    for partition in range(len(workload.clients)):
        assert "y" not in workload.data(partition, "train").columns
