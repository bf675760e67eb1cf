"""What is refused before a directory is made or a process is started."""

from __future__ import annotations

import pytest
import torch

import fedlab
import toy
from fedlab import launch
from fedlab.errors import ConfigError
from fedlab.training import resolve_device
from tables import put


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"strategy": "dualadpt"}, "unknown strategy 'dualadpt'; did you mean 'dualadapt'"),
        ({"workload": "digit"}, "unknown workload 'digit'; did you mean 'digits'"),
        ({"engine": "rai"}, "unknown engine 'rai'; did you mean 'ray'"),
        ({"roundz": 3}, "unknown option 'roundz'; did you mean 'rounds'"),
        ({"rounds": "many"}, "option 'rounds'.*got 'many'.*integer"),
        ({"rounds": 0}, "option 'rounds'.*got 0.*greater than or equal to 1"),
        ({"server.learning_rate": -1.0}, "option 'server.learning_rate'.*got -1.0.*greater than 0"),
        ({"dualadapt.mixup": "sum"}, "option 'dualadapt.mixup'.*got 'sum'.*'average'"),
        (
            {"fedprox.mu": 1.0},
            "option 'fedprox.mu' has no effect in this run, which uses workload 'blobs', strategy 'dualadapt'.*"
            "; it has an effect with strategy=fedprox$",
        ),
        (
            {"strategy": "source_only", "client.lr_warmup_rounds": 1},
            "'client.lr_warmup_rounds' has no effect .* the steps of strategy 'source_only' do not depend on it"
            "; leave it out; it has an effect with the strategies dualadapt, self_training, .*",
        ),
        (
            {"shot.epochs": 1.0},
            "'shot.epochs' has no effect .* it has an effect with strategy=shot or dualadapt.client_adapt=shot$",
        ),
        ({"data.label_smoothing": 0.1}, "'data.label_smoothing': the loss of workload 'blobs' is no cross-entropy"),
        ({"client.accumulate_steps": 2}, "'client.accumulate_steps' has no effect .* strategy 'dualadapt'"),
        ({"client.lr_schedule": "step"}, "'client.lr_step_rounds'.*needs the number of rounds"),
        ({"client.lr_warmup_rounds": 3}, "'client.lr_warmup_rounds': after a warm-up of 3 rounds none of the run's 3"),
        (
            {"server.lr_schedule": "step", "server.lr_step_rounds": 3},
            "first step would come in round 4",
        ),
        ({"client.optimizer": "adam"}, "'client.optimizer' has no effect .* strategy 'dualadapt'"),
        (
            {"strategy": "source_only", "client.momentum": 0.5},
            "'client.momentum' has no effect .* strategy 'source_only'",
        ),
        ({"client.steps": 9, "client.epochs": 1.0}, "'client.steps' has no effect .* client.epochs=1 says how long"),
        ({"data.alpha": 0.1}, "'data.alpha' has no effect .* workload 'blobs' .* does not depend on it"),
        ({"sample_every": 2}, "'sample_every' has no effect .* 'blobs' generates no samples"),
        ({"fraction_evaluate": 0.5, "client.evaluate": False, "server.evaluate": True}, "'fraction_evaluate' has no"),
        ({"compile": True, "device": "cpu"}, "'compile' has no effect .* device is the CPU"),
        ({"dp.delta": 1e-6}, "'dp.delta' has no effect .* adds no noise"),
        ({"track_group": "mine"}, "'track_group' has no effect .* set track=mlflow"),
        ({"track": ",, "}, "option 'track': ',, ' names nothing"),
        ({"join_rounds": ","}, "option 'join_rounds': ',' names nothing"),
        ({"stop.patience": 5}, "'stop.patience' has no effect .* set stop.metric=accuracy"),
        ({"stop.metric": "acuracy"}, "'acuracy' is none of .*: accuracy, .* accuracy_average,.* mean 'accuracy'"),
        ({"device": "gpu"}, "option 'device'.*got 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99' was asked for, but this machine has"),
        ({"data.num_clients": 3}, r"clients=3, but workload 'blobs' has 2 partitions \(near, far\)"),
        ({"min_clients": 3}, "min_clients=3 is more than the run's 2 clients"),
        ({"dualadapt.components": 91}, "mixture of 91 components cannot be fitted to 90 source examples"),
        ({"dualadapt.variance_floor": "inf"}, "option 'dualadapt.variance_floor'.*got 'inf'"),
        ({"name": "../elsewhere"}, "option 'name'"),
        ({"blobs.headless": True}, r"dualadapt needs a model with \.features and \.head; Linear"),
        ({"strategy": "fedavg"}, "'fedavg' trains on the clients' own labels"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fedlab.run(toy.write_preset(tmp_path), runs=tmp_path / "runs", overrides=overrides)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("given", "threads"), [({"threads": 1}, 1), ({}, 3)])
def test_data_is_read_with_the_threads_that_a_user_asks_for(tmp_path, monkeypatch, given, threads):
    seen, read = set(), toy.Blobs.data

    def data(self, partition, split):
        seen.add(torch.get_num_threads())
        return read(self, partition, split)

    monkeypatch.setattr(toy.Blobs, "data", data)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        launch.prepare(toy.write_preset(tmp_path), given)
    finally:
        torch.set_num_threads(before)
    assert seen == {threads}


@pytest.mark.parametrize("engine", ["inprocess", "grpc"])
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"data.partition": "dirichlet", "data.alpha": 0.05},
            "no split of 200 examples over 16 clients with alpha=0.05",
        ),
        ({"data.num_clients": 30}, "200 examples cannot be split over 30 clients with at least 10 each"),
        ({"digits.setting": "domains", "data.clients_per_domain": 50}, "200 examples cannot be split over 50 clients"),
        ({"digits.setting": "domains", "digits.client_labels": False}, r"'fedavg' trains .* \(usps\) have none"),
    ],
)
def test_a_server_refuses_what_its_clients_could_not_do_as_a_simulation_does(monkeypatch, engine, overrides, sentence):
    monkeypatch.delenv("FEDLAB_DATA", raising=False)
    split = {"data.num_clients": 16, "data.partition": "iid"} if "digits.setting" not in overrides else {}
    few = {"data.max_examples": 200, "digits.targets": "usps"}
    here = {"grpc.insecure": True} if engine == "grpc" else {}
    with pytest.raises(ConfigError, match=sentence):
        launch.prepare("fedavg-digits", {"engine": engine, **few, **split, **here, **overrides})


def test_a_server_need_not_have_what_its_clients_bring():
    options = {"digits.targets": "usps,@factory", "data.max_examples": 50, "engine": "grpc", "grpc.insecure": True}
    assert launch.prepare("dualadapt-digits", options).clients == ("usps", "factory")


def test_a_gpu_that_clients_would_not_reach_is_refused_and_auto_does_not_take_it(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    preset = toy.write_preset(tmp_path, engine="ray")
    with pytest.raises(ConfigError, match=r"device 'cuda'.*clients of this engine get no GPU; set ray.gpus"):
        fedlab.run(preset, runs=tmp_path / "runs", device="cuda")
    assert resolve_device("auto", gpu_reachable=False) == torch.device("cpu")
    assert resolve_device("auto", gpu_reachable=True) == torch.device("cuda")


@pytest.mark.parametrize(
    ("join_rounds", "sentence"),
    [
        ("late=7", "late would join in round 7, and the run has 6; name an earlier round, or raise rounds"),
        ("late", "'late' is not client=round with a round from 1"),
        ("late=0", "'late=0' is not client=round"),
        ("lat=2", "this run has no client 'lat'; did you mean 'late'"),
        ("near=1,far=2,late=3", "every client joins late"),
    ],
)
def test_join_rounds_that_make_no_sense_are_refused(tmp_path, join_rounds, sentence):
    with pytest.raises(ConfigError, match=sentence):
        fedlab.run(
            toy.write_preset(tmp_path, **{"blobs.domains": "near,far,late", "join_rounds": join_rounds, "rounds": 6}),
            runs=tmp_path / "runs",
        )
