"""The few-shot workload: its data, its episodes beside a plain loop, and bad input."""

from __future__ import annotations

import pytest
import torch

import fedlab
from configs import make
from fedlab.config.sections import parse_section
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError, DataError
from fedlab.models.feature_classifier import features_of
from fedlab.seeds import seeded
from fedlab.workloads.fewshot import NOVEL, FewShot

TUNE = {"targets": "omniglot_heldout,omniglot_texture", "queries": 4, "episodes": 12, "shots": "1,3", "width": 8}


@pytest.fixture
def workload():
    return make(FewShot, **TUNE)


@pytest.fixture
def model(workload):
    with seeded("model"):
        return workload.model().eval()


def test_no_episode_image_was_in_the_unlabeled_part():
    workload = FewShot(targets="usps,mnist_m,optdigits,synthdigits,omniglot_texture", shots="1", queries=4)
    for partition in range(5):
        bare = {image.numpy().tobytes() for image in workload.data(partition, "train").columns["x"]}
        episodes = {image.numpy().tobytes() for image in workload.data(partition, "test").columns["x"]}
        assert bare and episodes and not bare & episodes, workload.clients[partition]


def test_clients_train_without_labels_and_images_are_in_range(workload):
    train, test = workload.data(0, "train"), workload.data(0, "test")
    assert set(train.columns) == {"x"} and set(test.columns) == {"x", "y", NOVEL}
    for x in (train[:5]["x"], test[:5]["x"], workload.data(None, "train").sample_batch(5)["x"]):
        assert x.shape == (5, 3, 32, 32) and x.dtype == torch.float32
        assert x.min() >= -1 and x.max() <= 1
    assert torch.equal(test[:9]["x"][:, 0], test[:9]["x"][:, 2])  # gray in three channels


def test_a_target_can_be_shared_by_clients_that_test_on_all_of_it():
    whole, shared = make(FewShot, **TUNE), make(FewShot, **TUNE, clients_per_domain=3)
    assert shared.clients[:4] == (
        "omniglot_heldout-0",
        "omniglot_heldout-1",
        "omniglot_heldout-2",
        "omniglot_texture-0",
    )
    for target in range(2):
        parts = [shared.data(3 * target + part, "train").columns["x"] for part in range(3)]
        images = [image.numpy().tobytes() for part in parts for image in part]
        wanted = [image.numpy().tobytes() for image in whole.data(target, "train").columns["x"]]
        assert sorted(images) == sorted(wanted) and {len(part) for part in parts} == {52}
        assert torch.equal(shared.data(3 * target + 1, "test").columns["x"], whole.data(target, "test").columns["x"])
    with pytest.raises(ConfigError, match="156 examples cannot be split over 40 clients"):
        make(FewShot, **TUNE, clients_per_domain=40).data(0, "train")


def test_clients_of_one_target_can_see_other_characters_and_the_simulation_knows_which():
    shared = make(FewShot, **TUNE, clients_per_domain=3, partition="shards")
    known = [shared.labels(part) for part in range(3)]
    assert [len(labels) for labels in known] == [len(shared.data(part, "train")) for part in range(3)]
    assert len(torch.cat(known).unique()) > max(len(labels.unique()) for labels in known) + 5
    with pytest.raises(ConfigError, match="partition=shards needs labels, and .usps. has none"):
        make(FewShot, targets="usps", clients_per_domain=2, partition="shards").data(0, "train")
    assert make(FewShot, targets="usps", clients_per_domain=2).labels(0) is None


def test_accuracies_of_prototypes_are_those_of_a_plain_loop(model):
    workload = make(FewShot, **TUNE, classifier="prototypes")
    data = workload.data(0, "test")
    with torch.no_grad():
        z = features_of(model)(data[:]["x"])
    found = workload.episode_accuracies(model, data)
    from fedlab.data.images.episodes import sample_episodes

    drawn = sample_episodes(data.columns["y"], ways=5, shots=3, queries=4, episodes=12, seed=0)
    for episode in range(12):
        means = [z[rows].mean(0) for rows in drawn.support[episode].view(5, 3)]
        right = [
            min(range(5), key=lambda k: float((z[row] - means[k]).norm())) == way
            for way, rows in enumerate(drawn.query[episode].view(5, 4).tolist())
            for row in rows
        ]
        assert float(found[3][episode]) == pytest.approx(sum(right) / 20)


def test_metrics_are_mean_and_interval_over_the_episodes(workload, model):
    data = workload.data(0, "test")
    metrics, each = workload.evaluate(model, data), workload.episode_accuracies(model, data)
    assert list(metrics) == ["accuracy_1-shot", "interval_1-shot", "accuracy_3-shot", "interval_3-shot"]
    mean = sum(each[1].tolist()) / 12
    error = (sum((value - mean) ** 2 for value in each[1].tolist()) / 12 / 12) ** 0.5
    assert metrics["accuracy_1-shot"] == pytest.approx(mean)
    assert metrics["interval_1-shot"] == pytest.approx(1.96 * error)
    assert mean > 0.25  # chance is 0.2; even random features see something


def test_two_models_are_tested_on_the_same_episodes(workload, model):
    """A model whose features say nothing is right on exactly one class of each episode."""
    data = workload.data(0, "test")
    again = workload.episode_accuracies(model, data)
    assert all(torch.equal(again[shots], values) for shots, values in workload.episode_accuracies(model, data).items())
    for weight in model.features.parameters():
        torch.nn.init.zeros_(weight)
    assert all((values == 0.2).all() for values in workload.episode_accuracies(model, data).values())


def test_the_servers_validation_measures_the_classifier_of_the_base(workload, model):
    metrics = workload.evaluate(model, workload.data(None, "test"))
    assert set(metrics) == {"accuracy", "loss"} and metrics["accuracy"] < 0.1


def test_protonet_is_trained_on_episodes(workload):
    batch = make(FewShot, **TUNE, objective="prototypes").data(None, "train").sample_batch(30)
    assert len(batch["y"].unique()) == 3
    proto = make(FewShot, **TUNE, objective="prototypes")
    with seeded("model"):
        loss = proto.loss(proto.model(), batch)
    loss.backward()
    assert loss.shape == () and loss > 0


def test_views_are_random_and_weak_ones_change_no_color(workload):
    x = workload.data(1, "train")[:6]["x"]
    assert not torch.equal(workload.view(x), workload.view(x))
    flat = torch.ones(4, 3, 32, 32) * torch.tensor([-0.5, 0.0, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(workload.view(flat, weak=True), flat)
    assert not torch.allclose(workload.view(flat), flat)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ""}, "'fewshot.targets' is empty"),
        ({"targets": "ups"}, "unknown set of images 'ups'; did you mean 'usps'"),
        ({"base": "usps"}, "'usps' can only be a target; bases are omniglot, tiny_imagenet"),
        ({"targets": "usps,usps"}, "set 'usps' appears twice"),
        ({"shots": "1,zero"}, "option 'fewshot.shots': got '1,zero'; expected numbers from 1"),
    ],
)
def test_sets_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_section(FewShot, "fewshot", {f"fewshot.{name}": value for name, value in options.items()})


def test_a_base_and_a_target_of_different_channels_are_refused_where_that_is_asked_for():
    with pytest.raises(ConfigError, match="base 'omniglot' has 1 channels and target 'mnist_m' 3; set fewshot.mix"):
        FewShot(targets="mnist_m", mix_channels=False).data(0, "train")
    assert len(FewShot(targets="usps", mix_channels=False).data(0, "train")) == 502


def test_too_few_classes_or_images_are_refused(model):
    data = FewShot(targets="usps").data(0, "test")
    with pytest.raises(DataError, match="episodes of 11 classes cannot be sampled from 10"):
        FewShot(targets="usps", ways=11, width=8).evaluate(model, data)
    few = ArrayDataset({name: column[:80] for name, column in data.columns.items()}, data.transform)
    with pytest.raises(DataError, match="for episodes, and 20 shots with 15 queries take 35; lower fewshot.shots"):
        FewShot(targets="usps", shots="20", width=8).evaluate(model, few)
    with pytest.raises(DataError, match="there is no partition 1; this workload has 1: usps"):
        FewShot(targets="usps").data(1, "test")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ways": 30}, "episodes of 30 classes cannot be sampled from 10; lower fewshot.ways"),
        ({"queries": 100_000}, "1 shots with 100000 queries take 100001; lower fewshot.shots, fewshot.queries"),
    ],
)
def test_episodes_that_cannot_be_sampled_are_refused_before_anything_is_made(tmp_path, options, sentence):
    given = {"rounds": 1, "fewshot.shots": "1", "fewshot.targets": "usps"}
    given |= {f"fewshot.{name}": value for name, value in options.items()}
    with pytest.raises(DataError, match=sentence):
        fedlab.run("startup-omniglot", runs=tmp_path / "runs", overrides=given)
    assert not (tmp_path / "runs").exists()


def test_one_episode_has_no_interval():
    with pytest.raises(ConfigError, match=r"fewshot.episodes.*from 2, for an interval.*got 1"):
        parse_section(FewShot, "fewshot", {"fewshot.episodes": 1})
