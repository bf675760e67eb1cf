"""One set among thousands of clients: views of one pool, drawn once, and nobody without examples to test on."""

from __future__ import annotations

import pytest
import torch

from configs import make
from fedlab.data.partitioners import PARTITIONS
from fedlab.errors import DataError
from fedlab.workloads import shards
from fedlab.workloads.digits import Digits
from fedlab.workloads.images import Images

MANY = {"num_clients": 1000, "min_examples": 2, "partition": "shards"}


@pytest.mark.parametrize(
    ("kind", "options"),
    [(Digits, {"setting": "shards"}), (Images, {"client_labels": True})],
)
def test_a_thousand_clients_hold_the_whole_set_and_each_can_be_tested(kind, options):
    workload = make(kind, **MANY, **options)
    trained = [workload.data(number, "train") for number in range(1000)]
    whole = workload.data(None, "train").columns
    labels = torch.cat([data.columns["y"] for data in trained])
    assert len(labels) == len(whole["y"])
    assert torch.equal(labels.bincount(), whole["y"].bincount())
    assert all(len(data.columns["y"].unique()) <= 4 for data in trained)
    tested = [workload.data(number, "test") for number in range(1000)]
    assert {len(data) for data in tested} == {10}
    assert torch.equal(workload.labels(7), trained[7].columns["y"])


def test_clients_are_views_of_what_the_server_reads_too():
    workload = make(Digits, setting="shards", **MANY)
    whole, part = workload.data(None, "train").columns["x"], workload.data(3, "train")
    assert part.columns.stored["x"].data_ptr() == whole.data_ptr()
    assert torch.equal(part.columns["x"], whole[shards.shard_rows(workload, "train")[3]])


def test_equal_workloads_share_one_draw_and_others_do_not():
    first, same = (make(Digits, setting="shards", **MANY) for _ in range(2))
    other = make(Digits, setting="shards", **{**MANY, "num_clients": 999})
    assert first is not same
    assert shards.shard_rows(first, "train") is shards.shard_rows(same, "train")
    assert shards.shard_rows(first, "train") is not shards.shard_rows(other, "train")
    assert first.clients is same.clients


@pytest.mark.parametrize("kind", [kind for kind in PARTITIONS if kind != "dirichlet"])
def test_every_scheme_but_one_serves_a_thousand_clients(kind):
    workload = make(Digits, setting="shards", **{**MANY, "partition": kind}, alpha=0.3)
    sizes = [len(workload.data(number, "train")) for number in range(1000)]
    assert sum(sizes) == 6000 and min(sizes) >= 2


def test_a_partition_that_does_not_exist_is_named_without_a_thousand_names():
    with pytest.raises(
        DataError, match=r"no partition 1000; this workload has 1000: shard-0, .*, shard-999$"
    ) as caught:
        make(Digits, setting="shards", **MANY).data(1000, "train")
    assert len(str(caught.value)) < 120


def test_clients_test_on_their_own_classes_where_that_is_asked_for():
    workload = make(Digits, setting="shards", test_classes="own", **MANY)
    for number in (0, 500, 999):
        own, tested = workload.data(number, "train").columns["y"], workload.data(number, "test").columns["y"]
        assert len(tested) == 10 and set(tested.tolist()) <= set(own.tolist())
    assert torch.equal(workload.data(None, "test").columns["y"], make(Digits).data(None, "test").columns["y"])
