"""Digits: who holds what in each setting, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from configs import make
from fedlab.data.dataset import ArrayDataset
from fedlab.data.digits import datasets as sets
from fedlab.data.partitioners import PARTITIONS
from fedlab.errors import ConfigError, DataError
from fedlab.models.convnet import ConvNet
from fedlab.models.digits import McdNet, SmallNet
from fedlab.models.mixer import Mixer
from fedlab.models.mlp import MLP
from fedlab.seeds import seeded
from fedlab.workloads.digits import Digits
from fedlab.workloads.domain_suite import accuracy_and_loss

TARGETS = "usps,optdigits"


# --- who holds what ---


def test_in_adaptation_targets_train_without_labels_and_test_with_them():
    workload = Digits(targets=TARGETS)
    assert workload.clients == ("usps", "optdigits")
    for partition, domain in enumerate(workload.clients):
        train, test = workload.data(partition, "train"), workload.data(partition, "test")
        assert set(train.columns) == set(train[:2]) == {"x"}
        assert set(test.columns) == {"x", "y"}
        assert torch.equal(test.columns["y"], sets.load_digits(domain, "test").columns["y"])
    source = workload.data(None, "train")
    assert set(source.columns) == {"x", "y"}
    assert len(source) == len(sets.load_digits("mnist", "train", with_labels=True))


def test_in_the_oracle_setting_the_same_images_have_their_labels():
    adaptation, oracle = Digits(targets=TARGETS), Digits(targets=TARGETS, client_labels=True)
    for partition in (0, 1):
        train = oracle.data(partition, "train")
        assert set(train.columns) == {"x", "y"}
        assert torch.equal(train.columns["x"], adaptation.data(partition, "train").columns["x"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_in_the_shards_setting_clients_share_the_source_without_overlap(split):
    workload = make(Digits, setting="shards", num_clients=3, max_examples=200, augment=False)
    assert workload.clients == ("shard-0", "shard-1", "shard-2")
    shards = [workload.data(partition, split) for partition in range(3)]
    whole = sets.load_digits("mnist", split, with_labels=True)
    assert sum(map(len, shards)) == 200
    labels = torch.cat([shard.columns["y"] for shard in shards])
    assert torch.equal(labels.bincount(minlength=10), whole.columns["y"][:200].bincount(minlength=10))
    rows = torch.cat([shard.columns["x"].flatten(1) for shard in shards])
    assert len(torch.unique(rows, dim=0)) == len(torch.unique(whole.columns["x"][:200].flatten(1), dim=0))


def test_shards_are_skewed_in_training_and_alike_in_testing():
    workload = make(Digits, setting="shards", num_clients=2, max_examples=400, alpha=0.1)

    def apart(split):
        one, other = (
            workload.data(partition, split).columns["y"].bincount(minlength=10).float() for partition in (0, 1)
        )
        return float((one / one.sum() - other / other.sum()).abs().sum() / 2)

    assert apart("train") > 0.4
    assert apart("test") < 0.1


def test_shards_follow_the_run_seed():
    def labels(seed):
        return (
            make(Digits, setting="shards", num_clients=2, max_examples=200, seed=seed)
            .data(0, "train")
            .columns["y"]
            .tolist()
        )

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)


def test_limit_cuts_every_part():
    workload = make(Digits, targets=TARGETS, max_examples=20)
    lengths = {len(workload.data(partition, split)) for partition in (None, 0, 1) for split in ("train", "test")}
    assert lengths == {20}
    assert len(make(Digits, targets=TARGETS, max_examples=10**9).data(0, "test")) == len(
        sets.load_digits("usps", "test")
    )


# --- several clients a domain ---


@pytest.mark.parametrize("kind", list(PARTITIONS))
def test_a_target_can_be_shared_by_clients_that_test_on_all_of_it(kind):
    whole, shared = Digits(targets=TARGETS), make(Digits, targets=TARGETS, clients_per_domain=3, partition=kind)
    assert shared.clients == ("usps-0", "usps-1", "usps-2", "optdigits-0", "optdigits-1", "optdigits-2")
    for target in range(2):
        parts = [shared.data(3 * target + part, "train") for part in range(3)]
        assert all(set(part.columns) == set(part[:2]) == {"x"} for part in parts)
        images = [image.tobytes() for part in parts for image in part.columns["x"].numpy()]
        wanted = [image.tobytes() for image in whole.data(target, "train").columns["x"].numpy()]
        assert sorted(images) == sorted(wanted)
        test = whole.data(target, "test")
        assert torch.equal(shared.data(3 * target + 2, "test").columns["x"], test.columns["x"])


def test_labels_deal_the_rows_and_only_the_oracle_setting_hands_them_out():
    """What the simulation knows of a client is what that client would have held with labels, and is skewed."""
    options = {"targets": TARGETS, "clients_per_domain": 2, "partition": "shards"}
    blind, oracle = make(Digits, **options), make(Digits, **options, client_labels=True)
    for partition in range(4):
        train, labeled = blind.data(partition, "train"), oracle.data(partition, "train")
        assert torch.equal(train.columns["x"], labeled.columns["x"])
        assert torch.equal(blind.labels(partition), labeled.columns["y"])
        assert len(blind.labels(partition).unique()) <= 7  # two of four pieces of ten sorted classes
        assert "y" not in train.columns


@pytest.mark.parametrize("kind", [kind for kind, line in PARTITIONS.items() if not line.by_label])
def test_a_split_that_needs_no_labels_reads_none(monkeypatch, kind):
    read = sets.load_digits

    def without_labels(domain, split, root, *, with_labels, upper_bound):
        assert not with_labels
        return read(domain, split, root)

    monkeypatch.setattr(sets, "load_digits", without_labels)
    assert len(make(Digits, targets=TARGETS, clients_per_domain=2, partition=kind).data(0, "train"))


def test_splits_follow_the_run_seed_and_differ_between_domains():
    def sizes(domain, seed):
        options = {
            "targets": domain,
            "clients_per_domain": 3,
            "partition": "quantity",
            "max_examples": 1000,
            "seed": seed,
        }
        return [len(make(Digits, **options).data(partition, "train")) for partition in range(3)]

    assert sizes("usps", 1) == sizes("usps", 1)
    assert len({tuple(sizes(*of)) for of in (("usps", 1), ("usps", 2), ("mnist_m", 1))}) == 3


def test_the_source_can_be_split_by_any_kind():
    def classes(kind):
        workload = make(Digits, setting="shards", num_clients=5, partition=kind, max_examples=500)
        assert torch.equal(workload.labels(4), workload.data(4, "train").columns["y"])
        return [len(workload.labels(partition).unique()) for partition in range(5)]

    assert classes("iid") == [10] * 5
    assert max(classes("shards")) <= 6


def test_a_client_with_its_own_images_is_one_and_nobody_knows_their_labels(own):
    workload = make(Digits, targets="@mine,usps", clients_per_domain=2, root=str(own().parent))
    assert workload.clients == ("mine", "usps-0", "usps-1")
    assert len(workload.data(0, "train")) == 5
    assert workload.labels(0) is None
    with pytest.raises(ConfigError, match="two clients would be called 'usps-1'; rename the one that brings"):
        make(Digits, targets="@usps-1,usps", clients_per_domain=2)


def test_more_clients_than_a_domain_can_feed_are_refused():
    with pytest.raises(ConfigError, match="1,200 examples cannot be split over 121 clients with at least 10 each"):
        make(Digits, targets="optdigits", clients_per_domain=121, partition="iid").data(0, "train")


# --- a client's own images ---


@pytest.fixture
def own(tmp_path):
    """A data root with a folder of five images to train on, and how to give it test images."""
    root = tmp_path / "sets" / "mine"

    def put(*names):
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((40, 30), 8 * number, np.uint8)).save(path)
        return root

    put(*(f"{number}.png" for number in range(5)))
    return put


def test_a_target_behind_an_at_sign_is_a_folder_below_the_data_root(own):
    root = own()
    workload = make(Digits, targets="@mine, optdigits", root=str(root.parent))
    assert workload.clients == ("mine", "optdigits")
    train = workload.data(0, "train")
    assert set(train.columns) == set(train[:2]) == {"x"}
    assert train[:]["x"].shape == (5, 3, 32, 32)
    assert train.columns["x"][:, 0, 16, 16].tolist() == [0, 8, 16, 24, 32]
    assert train[:]["x"].min() == -1
    assert set(workload.data(1, "test").columns) == {"x", "y"}


@pytest.mark.parametrize("targets", ["usps,@mine", "usps,optdigits"])
def test_a_given_folder_takes_the_place_of_whatever_the_client_would_hold(own, targets):
    workload = make(Digits, targets=targets, client_folder=str(own()))
    assert workload.clients == tuple(targets.replace("@", "").split(","))
    assert [len(workload.data(partition, "train")) for partition in (0, 1)] == [5, 5]
    assert len(workload.data(None, "test")) == len(sets.load_digits("mnist", "test"))  # the server's stays its own


def test_a_folder_without_labels_measures_nothing(own):
    workload = make(Digits, targets="@mine", client_folder=str(own()))
    test = workload.data(0, "test")
    assert set(test.columns) == {"x"}
    assert len(test) == 5
    assert workload.evaluate(Table(), test) == {}


def test_a_labeled_test_folder_is_measured(own):
    workload = make(Digits, targets="@mine", client_folder=str(own("test/1/a.png", "test/0/b.png")))
    test = workload.data(0, "test")
    assert test.columns["y"].tolist() == [0, 1]
    with seeded("model"):
        assert set(workload.evaluate(SmallNet(), test)) == {"accuracy", "loss"}
    assert len(workload.data(0, "train")) == 5


def test_limit_spreads_over_a_folder(own):
    """The first ones would all be of the first sub-folder: of one class."""
    root = own(*(f"test/{label}/{number}.png" for label in range(10) for number in range(3)))
    workload = make(Digits, targets="@mine", client_folder=str(root), max_examples=10)
    assert len(workload.data(0, "test").columns["y"].unique()) == 10
    assert len(workload.data(0, "train")) == 5


def test_files_are_read_as_a_folders_are(own):
    root = own()
    files = sorted(root.glob("*.png"))
    workload = make(Digits, client_folder=str(root))
    assert torch.equal(workload.images(files)[:]["x"], workload.data(0, "train")[:]["x"])


def test_a_folder_that_is_not_here_says_what_to_do(tmp_path):
    with pytest.raises(DataError) as error:
        Digits(targets="@mine").data(0, "train")
    assert "client 'mine' brings its own images, and there are none here" in str(error.value)
    assert "fedlab join HOST:PORT --domain mine --data FOLDER" in str(error.value)
    assert "put images into DATA_ROOT/mine and set data.root to DATA_ROOT" in str(error.value)
    with pytest.raises(DataError, match=rf"put images into {tmp_path}/mine$"):
        make(Digits, targets="@mine", root=str(tmp_path)).data(0, "train")
    with pytest.raises(DataError, match="folder of images .*gone is not there"):
        make(Digits, targets="@mine", client_folder=str(tmp_path / "gone")).data(0, "train")
    with pytest.raises(DataError, match="no split 'trian' of a folder of images; did you mean 'train'"):
        make(Digits, targets="@mine", client_folder=str(tmp_path)).data(0, "trian")


@pytest.mark.parametrize("setting", [{"client_labels": True}, {"setting": "shards"}])
@pytest.mark.parametrize("options", [{"targets": "usps,@mine"}, {"targets": "usps", "client_folder": "@mine"}])
def test_own_images_have_no_labels_for_other_settings(setting, options):
    with pytest.raises(ConfigError, match=r"gives clients labels to train on.* own images \(@mine\) have none; set"):
        make(Digits, **setting, **options)


# --- views ---


def test_only_the_servers_training_images_get_new_views():
    workload = make(Digits, targets=TARGETS, max_examples=20)
    for partition, split, varies in ((None, "train", True), (None, "test", False), (0, "train", False)):
        data = workload.data(partition, split)
        assert torch.equal(data[:4]["x"], data[:4]["x"]) != varies, (partition, split)


def test_views_keep_labels_range_and_follow_the_random_stream():
    data = make(Digits, targets=TARGETS, max_examples=20).data(None, "train")
    with seeded("view"):
        first = data[:8]
    with seeded("view"):
        assert torch.equal(data[:8]["x"], first["x"])
    assert first["x"].shape == (8, 3, 32, 32)
    assert first["x"].abs().max() <= 1 + 1e-6
    assert torch.equal(first["y"], data.columns["y"][:8])


def test_wide_views_move_digits_further():
    def moved(augment):
        data = make(Digits, targets=TARGETS, max_examples=400, augment=augment).data(None, "train")
        with seeded("view"):
            strokes = (data[:]["x"] - data[:]["x"][:, :, :1, :1]).abs().sum((1, 2)) > 0.5  # (images, columns)
        places = torch.arange(32.0)
        return float(torch.stack([places[row].mean() for row in strokes if row.any()]).std())

    assert moved("wide") > 1.4 * moved(True)


def test_without_augmentation_images_are_as_read():
    data = make(Digits, targets=TARGETS, max_examples=20, augment=False).data(None, "train")
    assert torch.equal(data[:8]["x"], sets.load_digits("mnist", "train", with_labels=True)[:8]["x"])


# --- model, loss, metrics ---


def test_networks_by_name():
    assert isinstance(Digits().model(), SmallNet)
    with torch.device("meta"):
        assert isinstance(Digits(network="mcd").model(), McdNet)
    assert isinstance(Digits(network="mixer").model(), Mixer)
    assert isinstance(Digits(network="mlp").model(), MLP)
    conv = Digits(network="conv").model()
    assert isinstance(conv, ConvNet) and sum(weight.numel() for weight in conv.parameters()) == 25_682


class Table(nn.Module):
    """Logits that are the first three numbers of x, times a weight of one."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.one * x


def test_loss_and_metrics_by_hand():
    third = math.log(2.0)
    x = torch.tensor([[third, 0.0, 0.0], [0.0, third, 0.0], [0.0, 0.0, third], [third, 0.0, 0.0]])
    data = ArrayDataset({"x": x, "y": torch.tensor([0, 1, 2, 1])})  # the last one is wrong
    expected = (3 * math.log(2) + math.log(4)) / 4  # -log(2/4) three times, -log(1/4) once
    assert Digits().loss(Table(), data[:]).item() == pytest.approx(expected, rel=1e-6)
    assert Digits().evaluate(Table(), data) == {"accuracy": 0.75, "loss": pytest.approx(expected, rel=1e-6)}


def test_metrics_do_not_depend_on_the_batches_of_evaluation():
    data = make(Digits, targets=TARGETS, max_examples=30).data(0, "test")
    with seeded("model"):
        model = SmallNet()
    whole = Digits().evaluate(model.train(), data)
    assert accuracy_and_loss(model.train(), data, batch=7) == pytest.approx(whole, rel=1e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": "usps,optdigit"}, "unknown digit domain 'optdigit'; did you mean 'optdigits'"),
        ({"source": "minst"}, "unknown digit domain 'minst'; did you mean 'mnist'"),
        ({"targets": "usps,optdigits,usps"}, "domain 'usps' appears twice among source 'mnist' and targets"),
        ({"targets": "usps,mnist"}, "domain 'mnist' appears twice.*each domain has one owner"),
        ({"targets": "usps,@usps"}, "domain 'usps' appears twice"),
        ({"targets": "@mnist"}, "domain 'mnist' appears twice"),
        ({"targets": "@"}, "target '@' is not a client's name; write @ and a name of letters.*for example @mine"),
        ({"targets": "@../up"}, "target '@../up' is not a client's name"),
        ({"targets": "@a/b"}, "target '@a/b' is not a client's name"),
        ({"targets": "mine"}, "unknown digit domain 'mine'; .* brings its own images is written '@mine'"),
        ({"source": "@mine"}, "unknown digit domain '@mine'"),
        ({"targets": ""}, "option 'digits.targets' is empty; name at least one domain"),
        ({"targets": " , "}, "option 'digits.targets': ' , ' names nothing"),
    ],
)
def test_domains_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(Digits, **options)


def test_spaces_between_targets_do_not_matter():
    assert Digits(targets=" usps , optdigits,").clients == ("usps", "optdigits")


@pytest.mark.parametrize("partition", [-1, 2])
def test_a_partition_that_does_not_exist_is_refused(partition):
    with pytest.raises(DataError, match=rf"there is no partition {partition}; this workload has 2: usps, optdigits"):
        Digits(targets=TARGETS).data(partition, "train")


def test_an_unknown_split_and_a_missing_root_are_refused(tmp_path):
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        Digits(targets=TARGETS).data(0, "trian")
    with pytest.raises(DataError, match="is not a folder"):
        make(Digits, targets=TARGETS, root=str(tmp_path / "none")).data(0, "train")


def test_more_shards_than_examples_are_refused():
    with pytest.raises(ConfigError, match="30 examples cannot be split over 4 clients with at least 10 each"):
        make(Digits, setting="shards", max_examples=30).data(0, "train")
