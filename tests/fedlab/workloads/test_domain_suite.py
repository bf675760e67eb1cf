"""Workloads of domains of one set: PACS and Office-Caltech10; who holds what, and what is refused."""

from __future__ import annotations

import pytest
import torch

from configs import make
from fedlab.data.images.domain_suites import load_domain
from fedlab.data.images.office import OFFICE
from fedlab.data.images.pacs import PACS
from fedlab.data.partitioners import PARTITIONS
from fedlab.errors import ConfigError, DataError
from fedlab.models.convnet import ConvNet
from fedlab.models.mixer import Mixer
from fedlab.workload import SupportsHiddenLabels
from fedlab.workloads.domain_suite import ClientSpec, client_data, client_specs
from fedlab.workloads.office import Office
from fedlab.workloads.pacs import Pacs

BOTH = pytest.mark.parametrize(("kind", "of"), [(Office, OFFICE), (Pacs, PACS)], ids=["office", "pacs"])


@BOTH
def test_any_domain_may_be_the_source_and_the_others_are_targets(kind, of):
    for source in of.domains:
        workload = kind(source=source)
        assert workload.clients == tuple(domain for domain in of.domains if domain != source)
        assert torch.equal(workload.data(None, "train").columns["x"], load_domain(of, source, "train").columns["x"])
    assert kind(source=of.domains[0], targets=f"{of.domains[2]}, {of.domains[1]}").clients == of.domains[2:0:-1]


@BOTH
def test_settings_say_whether_clients_hold_labels(kind, of):
    adaptation, oracle = kind(), kind(client_labels=True)
    for partition, domain in enumerate(adaptation.clients):
        train, labeled = adaptation.data(partition, "train"), oracle.data(partition, "train")
        assert set(train.columns) == {"x"} and set(labeled.columns) == {"x", "y"}
        assert torch.equal(train.columns["x"], labeled.columns["x"])
        assert torch.equal(adaptation.labels(partition), labeled.columns["y"])
        for workload in (adaptation, oracle):
            test = workload.data(partition, "test")
            assert torch.equal(test.columns["y"], load_domain(of, domain, "test").columns["y"])
    assert isinstance(adaptation, SupportsHiddenLabels)


@BOTH
@pytest.mark.parametrize("split", list(PARTITIONS))
def test_clients_that_share_a_domain_share_it_out_and_test_on_all_of_it(kind, of, split):
    target = of.domains[1]
    shared = make(kind, source=of.domains[0], targets=target, clients_per_domain=3, partition=split)
    assert shared.clients == (f"{target}-0", f"{target}-1", f"{target}-2")
    parts = [shared.data(part, "train") for part in range(3)]
    assert all(set(part.columns) == {"x"} for part in parts)
    rows = sorted(row.tobytes() for part in parts for row in part.columns["x"].numpy())
    assert rows == sorted(row.tobytes() for row in load_domain(of, target, "train").columns["x"].numpy())
    assert [len(shared.labels(part)) for part in range(3)] == list(map(len, parts))
    assert len(shared.data(2, "test")) == len(load_domain(of, target, "test"))


@BOTH
def test_only_the_sources_training_examples_get_new_views(kind, of):
    workload, plain = make(kind, max_examples=20), make(kind, max_examples=20, augment=False)
    for partition, split, varies in ((None, "train", True), (None, "test", False), (0, "train", False)):
        data = workload.data(partition, split)
        assert len(data) == 20
        assert torch.equal(data[:4]["x"], data[:4]["x"]) != varies, (partition, split)
    assert torch.equal(
        plain.data(None, "train")[:4]["x"], load_domain(of, plain.source, "train", with_labels=True)[:4]["x"]
    )


@BOTH
def test_domains_that_cannot_be_are_refused(kind, of):
    with pytest.raises(ConfigError, match=rf"unknown {of.name} domain '{of.domains[0]}x'; did you mean"):
        kind(source=of.domains[0] + "x")
    with pytest.raises(ConfigError, match=rf"domain '{of.domains[0]}' appears twice among source"):
        kind(source=of.domains[0], targets=of.domains[0])
    with pytest.raises(ConfigError, match=rf"domain '{of.domains[1]}' appears twice among source"):
        kind(source=of.domains[0], targets=f"{of.domains[1]},{of.domains[1]}")
    with pytest.raises(DataError, match="there is no partition 3; this workload has 3"):
        kind().data(3, "train")
    with pytest.raises(ConfigError, match="20 examples cannot be split over 3 clients with at least 10 each"):
        make(kind, max_examples=20, clients_per_domain=3).data(0, "train")


def test_a_domain_with_one_client_keeps_its_name_and_its_order():
    assert client_specs(("a", "b"), 1) == (ClientSpec("a", "a"), ClientSpec("b", "b"))
    assert [owner.name for owner in client_specs(("a", "b"), 2)] == ["a-0", "a-1", "b-0", "b-1"]
    whole = load_domain(OFFICE, "dslr", "train")
    part = client_data(Office(), ClientSpec("d", "dslr"), "train", False)
    assert torch.equal(part.columns["x"], whole.columns["x"])


def test_pacs_is_learned_by_either_network():
    assert isinstance(Pacs().model(), ConvNet)
    assert isinstance(model := Pacs(network="mixer").model(), Mixer)
    assert model(Pacs().data(None, "test")[:2]["x"]).shape == (2, 7)
