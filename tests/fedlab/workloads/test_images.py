"""Images with classes: who holds what, which network learns, what is refused; and a Mixer that federates."""

from __future__ import annotations

import pytest
import torch

import fedlab
from configs import make
from fedlab.config.sections import parse_section
from fedlab.data.images import image_sets
from fedlab.data.images.cutmix import PASTED_LABEL, PASTED_SHARE
from fedlab.data.partitioners import PARTITIONS
from fedlab.errors import ConfigError, DataError, IncompatibleWeightsError
from fedlab.models.convnet import ConvNet
from fedlab.models.mixer import Mixer
from fedlab.models.mlp import MLP
from fedlab.models.resnet_cifar import CifarResNet
from fedlab.models.vit import ViT
from fedlab.strategies.protocol import load
from fedlab.workload import SupportsHiddenLabels
from fedlab.workloads.images import MIXERS, NETWORKS, Images

FEW = {"max_examples": 400, "client_labels": True}


@pytest.mark.parametrize("kind", list(PARTITIONS))
def test_clients_share_out_both_parts(kind):
    workload = make(Images, num_clients=3, partition=kind, **FEW)
    assert workload.clients == ("shard-0", "shard-1", "shard-2")
    whole, tests = workload.data(None, "train"), workload.data(None, "test")
    assert len(whole) == len(tests) == 400
    for split, all_of_it in (("train", whole), ("test", tests)):
        parts = [workload.data(part, split).columns for part in range(3)]
        rows = sorted(image.tobytes() for part in parts for image in part["x"].numpy())
        assert rows == sorted(image.tobytes() for image in all_of_it.columns["x"].numpy())
    assert torch.equal(workload.labels(1), workload.data(1, "train").columns["y"])
    assert isinstance(workload, SupportsHiddenLabels)


def test_without_labels_clients_share_what_the_server_does_not_hold():
    workload = make(Images, num_clients=2, server_fraction=0.25)
    server, clients = workload.data(None, "train"), [workload.data(part, "train") for part in range(2)]
    assert all(set(shard.columns) == set(shard[:2]) == {"x"} for shard in clients)
    assert len(server) == 3248 // 4 and set(server.columns) == {"x", "y"}
    images = [image.tobytes() for data in (server, *clients) for image in data.columns["x"].numpy()]
    assert sorted(images) == sorted(image.numpy().tobytes() for image in image_sets.load_image_set("omniglot", None).x)
    assert [len(workload.labels(part)) for part in range(2)] == list(map(len, clients))
    assert "y" in workload.data(0, "test").columns


def test_small_alpha_skews_labels_and_only_those_of_training():
    def classes(split, alpha):
        workload = make(Images, num_clients=4, alpha=alpha, client_labels=True)
        return min(len(workload.data(part, split).columns["y"].unique()) for part in range(4))

    assert classes("train", 0.1) < 120 < 200 < classes("train", 100.0)
    assert classes("test", 0.1) > 120


def test_only_training_images_get_new_views():
    workload = make(Images, **FEW)
    for partition in (None, 0):
        for split in ("train", "test"):
            data = workload.data(partition, split)
            first, again = data[:4], data[:4]
            assert first["x"].shape == (4, 3, 32, 32) and first["x"].abs().max() <= 1 + 1e-6
            assert torch.equal(first["x"], again["x"]) == (split == "test")
            assert torch.equal(first["y"], data.columns["y"][:4])


def test_cutmix_and_other_changes_are_views_of_training_images_alone():
    workload = make(Images, min_crop_area=1.0, crop_padding=4, augment="trivial", cutmix=1.0, **FEW)
    for partition in (None, 0):
        data = workload.data(partition, "train")
        batch = data[:8]
        assert set(batch) == {"x", "y", PASTED_LABEL, PASTED_SHARE} and set(data.columns) == {"x", "y"}
        assert torch.equal(batch["y"], data.columns["y"][:8])
        assert not torch.equal(batch["x"], data[:8]["x"])
        assert set(workload.data(partition, "test")[:8]) == {"x", "y"}
    without_labels = make(Images, max_examples=400, cutmix=1.0).data(0, "train")
    assert set(without_labels[:8]) == {"x"}


def test_a_border_that_no_memory_could_hold_is_refused():
    with pytest.raises(ConfigError, match=r"images.crop_padding.*got 1000000000; .*less than or equal to 512"):
        parse_section(Images, "images", {"images.crop_padding": 10**9})


def test_the_loss_counts_both_labels_of_a_mixed_image():
    workload = make(Images, network="mlp", cutmix=1.0, label_smoothing=0.1, **FEW)
    model, batch = workload.model(), workload.data(None, "train")[:8]
    own, other = ({"x": batch["x"], "y": batch[name]} for name in ("y", PASTED_LABEL))
    for share, labels in ((0.0, own), (1.0, other)):
        mixed = {**batch, PASTED_SHARE: torch.full((8,), share)}
        torch.testing.assert_close(workload.loss(model, mixed), workload.loss(model, labels))


@pytest.mark.parametrize(
    "strategy", ["fedavg", "scaffold", "moon", "apfl", "fed_mcd", "fed_dann", "dualadapt", "qfedavg"]
)
def test_every_way_of_training_takes_mixed_batches(strategy, tmp_path):
    options = {
        "images.network": "mlp",
        "images.cutmix": 1.0,
        "images.client_labels": True,
        "data.max_examples": 400,
        "data.num_clients": 2,
        "data.partition": "iid",
        "client.steps": 5,
        "client.batch_size": 8,
        "server.pretrain_steps": 0,
        "threads": 1,
        "report": False,
    }
    result = fedlab.run(workload="images", strategy=strategy, runs=tmp_path, rounds=1, overrides=options)
    assert result.rounds[-1]["mean"]


def test_clients_that_train_at_once_mix_as_one_by_one(tmp_path):
    options = {
        "images.network": "mlp",
        "images.cutmix": 0.5,
        "data.max_examples": 400,
        "client.steps": 3,
        "client.batch_size": 8,
        "threads": 1,
        "report": False,
    }
    weights = []
    for way in ("off", "4"):
        overrides = {**options, "vectorize": way, "name": way, "images.source": "omniglot"}
        result = fedlab.run("mixer-cifar10", runs=tmp_path, rounds=1, overrides=overrides)
        weights.append(result.model().state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=0)


def test_networks_and_mixers_by_name():
    kinds = {
        "mixer": Mixer,
        "conv": ConvNet,
        "vit": ViT,
        "mlp": MLP,
        "resnet20": CifarResNet,
        "resnet18": CifarResNet,
    }
    assert set(kinds) == set(NETWORKS)
    for name, kind in kinds.items():
        model = Images(network=name).model()
        assert isinstance(model, kind)
        x = torch.zeros(2, 3, 32, 32)
        assert torch.equal(model.eval()(x), model.head(model.features(x)))
        assert model(x).shape == (2, 203)
    with torch.device("meta"):
        for name, shape in MIXERS.items():
            model = Images(mixer=name, size=2 * shape.patch).model()
            assert model.features.stem.weight.shape == (shape.width, 3, shape.patch, shape.patch)


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="images.source=usps is not a set with test images; known: cifar10, omni"):
        Images(source="usps")
    with pytest.raises(ConfigError, match="images.source=cifar is not a set with test images.*did you mean 'cifar10'"):
        Images(source="cifar")
    with pytest.raises(ConfigError, match="images of 30 pixels cannot be cut into patches of 8; take a multiple"):
        Images(size=30)
    with pytest.raises(ConfigError, match="images of 30 pixels cannot be cut into patches of 8"):
        Images(size=30, network="vit").model()
    with pytest.raises(ConfigError, match="images of 32 pixels cannot be cut into patches of 14.*for example 28"):
        Images(mixer="H/14").model()
    with pytest.raises(DataError, match=r"cifar10 does not ship with fedlab: expected FOLDER/cifar10/.*set data.root"):
        Images(source="cifar10").model()
    with pytest.raises(DataError, match="there is no partition 4; this workload has 4"):
        Images().data(4, "train")
    with pytest.raises(ConfigError, match="40 examples cannot be split over 5 clients"):
        make(Images, max_examples=40, num_clients=5).data(0, "train")


def test_a_checkpoint_of_another_model_is_refused():
    weights = Images().model().state_dict()
    assert load(Images().model(), weights, torch.device("cpu"))
    for options in ({"network": "vit"}, {"network": "conv"}, {"network": "mlp"}, {"mixer": "small"}, {"size": 24}):
        with pytest.raises(IncompatibleWeightsError, match="weights are of another model than .* use the workload and"):
            load(make(Images, **options).model(), weights, torch.device("cpu"))


@pytest.mark.engine
def test_a_mixer_federates_where_its_data_are(tmp_path):
    few = {"data.max_examples": 300, "client.steps": 3, "client.batch_size": 16, "threads": 1}
    result = fedlab.run("mixer-cifar10", runs=tmp_path, rounds=2, overrides={**few, "images.source": "omniglot"})
    assert set(result.final()) == {f"shard-{number}" for number in range(4)}
    with pytest.raises(DataError, match="does not ship with fedlab"):
        fedlab.run("mixer-cifar10", runs=tmp_path, overrides={"data.root": str(tmp_path)})
