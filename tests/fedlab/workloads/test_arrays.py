"""Classification problems of a notebook: models, arrays and data sets as objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import fedlab
import toy
from fedlab.errors import ConfigError, DataError
from fedlab.testing import check_workload
from fedlab.workloads.arrays import classification


class Rows(Dataset):
    """A data set of whatever it is given."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


def arrays(seed, count=60):
    columns = toy.blobs(count, 0.2 * seed, seed)
    return columns["x"].numpy().astype(np.float64), columns["y"].numpy()


def test_it_keeps_the_contract_and_a_labeled_client_is_tested_on_a_fifth():
    spec = classification(toy.Net, {"a": arrays(1), "b": TensorDataset(*map(torch.from_numpy, arrays(2)))}, arrays(0))
    check_workload(spec)
    a = spec.workload.data(0, "train")
    assert (len(a), len(spec.workload.data(0, "test")), a[:]["x"].dtype) == (48, 12, torch.float32)
    assert torch.equal(spec.workload.data(0, "test")[:]["y"], torch.from_numpy(arrays(1)[1][4::5]))
    assert spec.workload.classes == ("0", "1", "2")


def test_unlabeled_clients_adapt_and_a_module_is_the_model_that_a_run_begins_with(tmp_path):
    model, clients = toy.Net(), {"a": arrays(1)[0], "b": arrays(2)[0]}
    spec = classification(model, clients, arrays(0), test={"a": arrays(3), "b": arrays(4)}, classes=("u", "v", "w"))
    options = {key: value for key, value in toy.SMALL.items() if key != "workload"} | {"name": "own"}
    result = fedlab.run(options, workload=spec, strategy="dualadapt", runs=tmp_path, rounds=1)
    assert set(result.final()["b"]) >= {"accuracy_average", "accuracy_global"}
    options = {"strategy": "fedavg", "server.pretrain_steps": 0, "rounds": 1, "client.steps": 0, "threads": 1}
    untrained = fedlab.run(options, workload=classification(model, {"a": arrays(1)}), runs=tmp_path / "untrained")
    torch.testing.assert_close(untrained.model().head[0].weight, model.head[0].weight)
    assert untrained.metric_table.direction("accuracy") > 0


@pytest.mark.parametrize(
    ("clients", "test", "sentence"),
    [
        ({}, None, "there are no clients"),
        ({"a": arrays(1)}, {"b": arrays(1)}, "test examples are given for b"),
        ({"a": arrays(1)[0]}, None, "a has nothing to be tested on"),
        ({"a": arrays(1)[0]}, {"a": arrays(1)[0]}, "the test examples of a have no labels"),
        ({"a": (*arrays(1), 3)}, None, r"a tuple of 3 is no pair \(x, y\)"),
        ({"a": (arrays(1)[0], arrays(1)[1][:3])}, None, r"labels of shape \(3,\) .* for 60 inputs"),
        ({"a": (arrays(1)[0], arrays(1)[1] - 1)}, None, "one class from 0"),
        ({"a": (arrays(1)[0], arrays(1)[1] + 0.5)}, None, "as an integer"),
        ({"a": "words"}, None, "a str is no array of numbers"),
        ({"a": 5}, None, r"a: inputs of shape \(\)"),
        ([arrays(1)], None, "there are no clients"),
        ({"a": (arrays(1)[0][:0], arrays(1)[1][:0])}, None, "at least one example"),
        ({"a": arrays(1)[0]}, {"a": (arrays(1)[0][:0], arrays(1)[1][:0])}, "at least one example"),
        ({"a": TensorDataset(torch.ones(3, 4))}, None, "a tuple and no pair of input and label"),
        ({"a": Rows([torch.ones(4)] * 9)}, None, "a Tensor and no pair of input and label"),
        ({"a": Rows([])}, None, "a Rows without a length or an example"),
        ({"a": Rows([(torch.ones(4), 0), (torch.ones(5), 1)])}, None, "have different shapes"),
        ({"a": Endless()}, None, "a Endless without a length"),
    ],
)
def test_what_is_no_example_is_a_sentence(clients, test, sentence):
    with pytest.raises(ConfigError, match=sentence):
        classification(nn.Linear(4, 3), clients, test=test)


def test_a_server_that_cannot_be_tested_is_a_sentence_of_its_own():
    with pytest.raises(ConfigError, match=r"the server has nothing to be tested on: .*; give \(x, y\) of more"):
        classification(nn.Linear(4, 3), {"a": arrays(1)}, server=arrays(0)[0])


def test_labels_of_any_integer_type_will_do():
    x, y = arrays(1)
    assert classification(nn.Linear(4, 3), {"a": (x, y.astype(np.uint16))}).workload.data(0, "train")[:]["y"].max() == 2


def test_a_server_without_examples_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"server=\(x, y\).*server.pretrain_steps=0"):
        fedlab.run({"strategy": "source_only"}, workload=classification(toy.Net, {"a": arrays(1)}), runs=tmp_path)
