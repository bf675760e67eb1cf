"""Digits: who holds what in each setting, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fedlab.data import digits as sets
from fedlab.data.examples import Examples
from fedlab.errors import ConfigError, DataError
from fedlab.models.digits import McdNet, SmallNet
from fedlab.seeds import seeded
from fedlab.workloads.digits import Digits

TARGETS = "usps,optdigits"


# --- who holds what ---


def test_in_adaptation_targets_train_without_labels_and_test_with_them():
    workload = Digits(targets=TARGETS)
    assert workload.clients == ("usps", "optdigits")
    for partition, domain in enumerate(workload.clients):
        train, test = workload.data(partition, "train"), workload.data(partition, "test")
        assert set(train.columns) == set(train[:2]) == {"x"}
        assert set(test.columns) == {"x", "y"}
        assert torch.equal(test.columns["y"], sets.read(domain, "test").columns["y"])
    source = workload.data(None, "train")
    assert set(source.columns) == {"x", "y"}
    assert len(source) == len(sets.read("mnist", "labelled"))


def test_in_the_oracle_setting_the_same_images_have_their_labels():
    adaptation, oracle = Digits(targets=TARGETS), Digits(targets=TARGETS, setting="oracle")
    for partition in (0, 1):
        train = oracle.data(partition, "train")
        assert set(train.columns) == {"x", "y"}
        assert torch.equal(train.columns["x"], adaptation.data(partition, "train").columns["x"])


@pytest.mark.parametrize("split", ["train", "test"])
def test_in_the_shards_setting_clients_share_the_source_without_overlap(split):
    workload = Digits(setting="shards", shards=3, limit=200, augment=False)
    assert workload.clients == ("shard-0", "shard-1", "shard-2")
    shards = [workload.data(partition, split) for partition in range(3)]
    whole = sets.read("mnist", "labelled" if split == "train" else "test")
    assert sum(map(len, shards)) == 200
    labels = torch.cat([shard.columns["y"] for shard in shards])
    assert torch.equal(labels.bincount(minlength=10), whole.columns["y"][:200].bincount(minlength=10))
    rows = torch.cat([shard.columns["x"].flatten(1) for shard in shards])
    assert len(torch.unique(rows, dim=0)) == len(torch.unique(whole.columns["x"][:200].flatten(1), dim=0))


def test_shards_are_skewed_in_training_and_alike_in_testing():
    workload = Digits(setting="shards", shards=2, limit=400, alpha=0.1)

    def apart(split):
        one, other = (
            workload.data(partition, split).columns["y"].bincount(minlength=10).float() for partition in (0, 1)
        )
        return float((one / one.sum() - other / other.sum()).abs().sum() / 2)

    assert apart("train") > 0.4
    assert apart("test") < 0.1


def test_shards_follow_the_run_seed():
    def labels(seed):
        return Digits(setting="shards", shards=2, limit=200, seed=seed).data(0, "train").columns["y"].tolist()

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)


def test_limit_cuts_every_part():
    workload = Digits(targets=TARGETS, limit=20)
    lengths = {len(workload.data(partition, split)) for partition in (None, 0, 1) for split in ("train", "test")}
    assert lengths == {20}
    assert len(Digits(targets=TARGETS, limit=10**9).data(0, "test")) == len(sets.read("usps", "test"))


# --- views ---


def test_only_the_servers_training_images_get_new_views():
    workload = Digits(targets=TARGETS, limit=20)
    for partition, split, varies in ((None, "train", True), (None, "test", False), (0, "train", False)):
        data = workload.data(partition, split)
        assert torch.equal(data[:4]["x"], data[:4]["x"]) != varies, (partition, split)


def test_views_keep_labels_range_and_follow_the_random_stream():
    data = Digits(targets=TARGETS, limit=20).data(None, "train")
    with seeded("view"):
        first = data[:8]
    with seeded("view"):
        assert torch.equal(data[:8]["x"], first["x"])
    assert first["x"].shape == (8, 3, 32, 32)
    assert first["x"].abs().max() <= 1 + 1e-6
    assert torch.equal(first["y"], data.columns["y"][:8])


def test_without_augmentation_images_are_as_read():
    data = Digits(targets=TARGETS, limit=20, augment=False).data(None, "train")
    assert torch.equal(data[:8]["x"], sets.read("mnist", "labelled")[:8]["x"])


# --- model, loss, metrics ---


def test_networks_by_name():
    assert isinstance(Digits().model(), SmallNet)
    with torch.device("meta"):
        assert isinstance(Digits(network="mcd").model(), McdNet)


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
    data = Examples({"x": x, "y": torch.tensor([0, 1, 2, 1])})  # the last one is wrong
    expected = (3 * math.log(2) + math.log(4)) / 4  # -log(2/4) three times, -log(1/4) once
    assert Digits().loss(Table(), data[:]).item() == pytest.approx(expected, rel=1e-6)
    assert Digits().evaluate(Table(), data) == {"accuracy": 0.75, "loss": pytest.approx(expected, rel=1e-6)}


def test_metrics_do_not_depend_on_the_batches_of_evaluation(monkeypatch):
    data = Digits(targets=TARGETS, limit=30).data(0, "test")
    with seeded("model"):
        model = SmallNet()
    whole = Digits().evaluate(model.train(), data)
    monkeypatch.setattr("fedlab.workloads.digits.EVALUATION_BATCH", 7)
    assert Digits().evaluate(model.train(), data) == pytest.approx(whole, rel=1e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"targets": "usps,optdigit"}, "unknown digit domain 'optdigit'; did you mean 'optdigits'"),
        ({"source": "minst"}, "unknown digit domain 'minst'; did you mean 'mnist'"),
        ({"targets": "usps,optdigits,usps"}, "domain 'usps' appears twice among source 'mnist' and targets"),
        ({"targets": "usps,mnist"}, "domain 'mnist' appears twice.*each domain has one owner"),
        ({"targets": ""}, "knob 'digits.targets' is empty; name at least one domain"),
        ({"targets": " , "}, "knob 'digits.targets' is empty"),
    ],
)
def test_domains_that_cannot_be_are_refused(knobs, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Digits(**knobs)


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
        Digits(targets=TARGETS, data_root=str(tmp_path / "none")).data(0, "train")


def test_more_shards_than_examples_are_refused():
    with pytest.raises(ConfigError, match="30 examples cannot be split into 4 shards of at least 10"):
        Digits(setting="shards", limit=30).data(0, "train")
