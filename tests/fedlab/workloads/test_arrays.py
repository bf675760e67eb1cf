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
    assert spec.workload.classes == ("0", "1", "2")


def test_rows_that_go_through_the_classes_in_turn_are_tested_on_every_class():
    x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 5
    workload = classification(nn.Linear(4, 5), {"a": (x, y)}).workload
    train, test = (workload.data(0, split)[:] for split in ("train", "test"))
    assert torch.bincount(test["y"]).tolist() == [2, 2, 3, 2, 3] and torch.bincount(train["y"]).tolist() == [
        10,
        10,
        9,
        10,
        9,
    ]
    both = torch.cat([train["x"], test["x"]])
    assert len(both) == 60 and torch.equal(both.sort(0).values, torch.from_numpy(x).float().sort(0).values)


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
        ({"a": (*arrays(1), 3)}, None, "a tuple of 3 is no pair"),
        ({"a": (arrays(1)[0], arrays(1)[1][:3])}, None, r"labels of shape \(3,\) for 60 inputs"),
        ({"a": (arrays(1)[0], arrays(1)[1] - 1)}, None, "labels are no class, the first is -1"),
        ({"a": (arrays(1)[0], arrays(1)[1] + 0.5)}, None, r"60 labels are no class, the first is \d.5"),
        ({"a": "words"}, None, "a: inputs of type str are no numbers"),
        ({"a": 5}, None, r"a: inputs of shape \(\)"),
        ([arrays(1)], None, "there are no clients"),
        ({"a": (arrays(1)[0][:0], arrays(1)[1][:0])}, None, "at least one example"),
        ({"a": arrays(1)[0]}, {"a": (arrays(1)[0][:0], arrays(1)[1][:0])}, "at least one example"),
        ({"a": TensorDataset(torch.ones(3, 4))}, None, "a tuple and no pair of input and label"),
        ({"a": Rows([torch.ones(4)] * 9)}, None, "a Tensor and no pair of input and label"),
        ({"a": Rows([])}, None, "a Rows without a length or an example"),
        ({"a": Rows([(torch.ones(4), 0), (torch.ones(5), 1)])}, None, "have different shapes"),
        ({"a": Endless()}, None, "a Endless without a length"),
        ({"a": arrays(1)}, (1, 2), "test is a tuple; give test examples by client"),
        (
            {"a": arrays(1), "b": (arrays(1)[0], arrays(1)[1] + 1)},
            None,
            "b has the label 3, and the model has 3 outputs",
        ),
        ({"a": arrays(1)}, {"a": (arrays(1)[0], arrays(1)[1] * 2)}, "a has the label 4, .* give the model 5 outputs"),
        (
            {"a": (arrays(1)[0][:, :3], arrays(1)[1])},
            None,
            r"cannot take the inputs of a, of shape \(batch, 3\).*float32",
        ),
        ({"a": (arrays(1)[0].astype(int), arrays(1)[1])}, None, r"int64.*needs x as floats, for images x / 255"),
    ],
)
def test_what_is_no_example_is_a_sentence(clients, test, sentence):
    with pytest.raises(ConfigError, match=sentence):
        classification(nn.Linear(4, 3), clients, test=test)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("resnet", "the model is a str; give a torch module, or a function"),
        (nn.Linear, r"calling 'Linear' without arguments raised TypeError: .*give a module, or a function such as"),
        (lambda: 3, "the function that makes the model returned a int"),
        (nn.Unflatten(1, (2, 2)), r"returned an output of shape \(2, 2, 2\); logits \(batch, classes\) are expected"),
        (nn.LSTM(4, 3), "returned an output of type tuple"),
    ],
)
def test_what_is_no_classifier_is_a_sentence(model, sentence):
    with pytest.raises(ConfigError, match=sentence):
        classification(model, {"a": arrays(1)})


def test_classes_have_a_name_each_and_a_model_in_training_stays_in_it():
    model = toy.Net().train()
    assert classification(model, {"a": arrays(1)}).workload.classes == ("0", "1", "2") and model.training
    for classes in (("u", "v"), "uvw"):
        with pytest.raises(ConfigError, match="a model with 3 outputs; give one name for each output"):
            classification(model, {"a": arrays(1)}, classes=classes)


def test_a_server_that_cannot_be_tested_is_a_sentence_of_its_own():
    with pytest.raises(ConfigError, match=r"the server has nothing to be tested on: .*; give \(x, y\) of more"):
        classification(nn.Linear(4, 3), {"a": arrays(1)}, server=arrays(0)[0])


def test_labels_of_any_integer_type_will_do():
    x, y = arrays(1)
    assert classification(nn.Linear(4, 3), {"a": (x, y.astype(np.uint16))}).workload.data(0, "train")[:]["y"].max() == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategy": "source_only"}, r"'source_only' trains on labeled examples of the server: .*server=\(x, y\)"),
        (
            {"strategy": "fedavg"},
            r"'fedavg' begins with .*steps=800\): .*server=\(x, y\).* or set server.pretrain_steps=0$",
        ),
        (
            {},
            r"'dualadapt' trains on .* \('dualadapt' is the default strategy, since none was named; set strategy=NAME",
        ),
        ({"strategy": "fedavg", "server.pretrain_steps": 0, "server.evaluate": True}, "or set server.evaluate=false"),
    ],
)
def test_a_server_without_examples_says_what_to_do_before_anything_is_made(tmp_path, options, sentence):
    with pytest.raises(DataError, match=sentence):
        fedlab.run(options, workload=classification(toy.Net, {"a": arrays(1)}), runs=tmp_path)
    assert not list(tmp_path.iterdir())


def test_each_client_needs_labels_where_a_strategy_trains_on_them(tmp_path):
    spec = classification(toy.Net, {"a": arrays(1), "b": arrays(2)[0]}, arrays(0), test={"b": arrays(2)})
    with pytest.raises(ConfigError, match=r"'fedavg' trains on the clients' own labels, and 1 of the 2 .* \(b\) have"):
        fedlab.run({"strategy": "fedavg"}, workload=spec, runs=tmp_path)
    assert not list(tmp_path.iterdir())
