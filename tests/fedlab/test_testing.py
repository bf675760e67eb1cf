"""The contract tests find what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.testing import Blobs, check_strategy, check_workload


@pytest.mark.parametrize("strategy", ["fedavg", "source_only"])
def test_ours_pass(strategy):
    check_strategy(registry.find("strategy", strategy).spec)


@pytest.mark.parametrize("labels", [False, True])
def test_a_workload_with_and_without_client_labels(labels):
    check_workload(Blobs(client_labels=labels))


def broken(**changes):
    return type("Broken", (Blobs,), changes)()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clients": ("a", "a")}, "distinct names are expected"),
        ({"loss": lambda self, model, batch: model(batch["x"])}, "a scalar is expected"),
        ({"evaluate": lambda self, model, data: {"accuracy": torch.tensor(1.0)}}, "plain finite floats"),
        ({"data": lambda self, partition, split: ArrayDataset({"x": torch.zeros(0, 4)})}, "is empty"),
        ({"data": lambda self, partition, split: ArrayDataset({"x": torch.full((20, 4), torch.nan)})}, "not finite"),
    ],
)
def test_a_broken_workload_is_named(changes, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_workload(broken(**changes))


def test_a_class_that_is_no_workload():
    with pytest.raises(ConfigError, match="it lacks clients, model, data, loss, evaluate"):
        check_workload(dict)


def test_a_strategy_that_accepts_everything():
    spec = registry.find("strategy", "fedavg").spec

    def trusting(*arguments):
        server = spec.server(*arguments)
        server.check = lambda reply: None
        return server

    with pytest.raises(AssertionError, match="an update that is not finite was used"):
        check_strategy(replace(spec, server=trusting))


def test_a_strategy_that_forgets_its_state():
    spec = registry.find("strategy", "fedavgm").spec

    def forgetful(*arguments):
        server = spec.server(*arguments)
        server.state, server.restore = dict, lambda state: None
        return server

    with pytest.raises(AssertionError, match="a resumed run gave another result"):
        check_strategy(replace(spec, server=forgetful))
