"""Generation: who holds what, what is trained and measured, and what is refused."""

from __future__ import annotations

import pytest
import torch

import fedlab
from configs import make
from fedlab.data.dataset import ArrayDataset
from fedlab.data.digits import datasets
from fedlab.data.partitioners import dirichlet
from fedlab.diffusion.denoising import denoising_errors, denoising_loss
from fedlab.errors import ConfigError, DataError
from fedlab.models.refinenet import RefineNet
from fedlab.models.unet import UNet
from fedlab.seeds import seeded
from fedlab.strategies.protocol import load
from fedlab.workloads.generation import Generation


def test_shards_share_the_source_by_label_and_hold_no_labels():
    workload = make(Generation, num_clients=3, max_examples=200, alpha=0.3, seed=4)
    assert workload.clients == ("shard-0", "shard-1", "shard-2")
    whole = datasets.load_digits("mnist", "train", with_labels=True)
    rows = dirichlet(whole.columns["y"][:200], 3, 0.3, 4)
    for partition in range(3):
        data = workload.data(partition, "train")
        assert set(data.columns) == set(data[:]) == {"x"}
        assert torch.equal(data.columns["x"], whole.columns["x"][rows[partition]])
    assert len(workload.data(None, "train")) == 200


def test_domains_are_a_client_each():
    workload = make(Generation, setting="domains", targets="usps, mnist_m", max_examples=20)
    assert workload.clients == ("usps", "mnist_m")
    for split in ("train", "test"):
        data = workload.data(1, split)
        assert set(data.columns) == {"x"}
        assert torch.equal(data.columns["x"], datasets.load_digits("mnist_m", split).columns["x"][:20])


def test_sixteen_pixels_are_the_means_of_two_by_two():
    data = make(Generation, size=16, max_examples=3).data(None, "test")
    whole = datasets.load_digits("mnist", "test")[:3]["x"][:, :1]
    assert torch.allclose(data[:]["x"], whole.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)), atol=1e-6)


@pytest.mark.parametrize(("size", "colors"), [(28, 1), (32, 3)])
def test_images_are_cut_and_mixed_as_asked(size, colors):
    data = make(Generation, setting="domains", targets="mnist_m", size=size, channels=colors, max_examples=4).data(
        0, "test"
    )
    whole = datasets.load_digits("mnist_m", "test")[:4]["x"]
    margin = (32 - size) // 2
    wanted = whole[:, :, margin : margin + size, margin : margin + size]
    assert data[:]["x"].shape == (4, colors, size, size)
    assert torch.allclose(data[:]["x"], wanted if colors == 3 else wanted.mean(1, keepdim=True))
    assert data[:]["x"].min() >= -1
    assert data[:]["x"].max() <= 1


def test_the_law_is_the_options():
    ddpm, gamma, ncsn = (Generation(process=law, num_timesteps=50).noise_schedule for law in ("ddpm", "gamma", "ncsn"))
    assert ddpm.gaussian and ncsn.gaussian and not gamma.gaussian
    assert torch.equal(ddpm.alpha, gamma.alpha)
    assert ddpm.at(0)[1] ** 2 == pytest.approx(20e-4)  # a twentieth of the levels, each with twenty times the noise
    assert Generation().noise_schedule.at(0)[1] ** 2 == pytest.approx(1e-4)
    assert [ncsn.at(0), ncsn.at(49)] == [(1.0, pytest.approx(0.02)), (1.0, pytest.approx(2.0))]
    assert Generation(schedule="cosine", num_timesteps=50).noise_schedule.alpha[0] != ddpm.alpha[0]
    assert Generation(process="ncsn", network="ncsn1", num_timesteps=10).noise_schedule.predicts_score


def test_the_network_is_the_options():
    assert isinstance(Generation().model(), UNet)
    for network, conditional in (("ncsn1", True), ("ncsn2", False)):
        model = Generation(network=network, process="ncsn", num_timesteps=10, width=4).model()
        assert isinstance(model, RefineNet)
        assert model.norm.conditional is conditional


def test_the_loss_is_the_objective_of_the_images():
    workload = make(Generation, max_examples=20)
    with seeded("model"):
        model = workload.model()
        torch.nn.init.normal_(model.out.weight, std=0.1)
    batch = workload.data(None, "train")[:8]
    with seeded("loss"):
        loss = workload.loss(model, batch)
    with seeded("loss"):
        assert torch.equal(denoising_loss(workload.noise_schedule, model, batch["x"]), loss)
    sliced = make(Generation, max_examples=20, objective="sliced")
    with seeded("loss"):
        assert not torch.equal(sliced.loss(model, batch), loss)


@pytest.mark.parametrize("law", ["ddpm", "gamma", "ncsn"])
def test_the_metric_is_the_error_at_levels_spread_over_all(law):
    workload = make(Generation, max_examples=20, process=law, num_timesteps=20)
    with seeded("model"):
        model = workload.model()
        torch.nn.init.normal_(model.out.weight, std=0.1)
    data = workload.data(None, "test")
    metrics = workload.evaluate(model, data)
    assert set(metrics) == {"loss"}
    with seeded(0, "test noise"):
        level = torch.arange(20)[torch.randperm(20)]
        noise = workload.noise_schedule.noise(data[:]["x"], level)
    wanted = denoising_errors(workload.noise_schedule, model, data[:]["x"], level, noise).mean()
    assert metrics["loss"] == pytest.approx(wanted.item(), rel=1e-5)
    with seeded("elsewhere"):
        assert workload.evaluate(model, data) == metrics


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"source": "mnits"}, "unknown digit domain 'mnits'; did you mean 'mnist'"),
        ({"targets": "usps,usps"}, "each once"),
        ({"targets": ""}, "at least one domain"),
        ({"size": 30}, "'generation.size' is 30; 16 or 28 or 32 is expected"),
        ({"channels": 2}, "'generation.channels' is 2; 1 or 3 is expected"),
        ({"network": "cifar10"}, "images of 28 pixels cannot be halved 3 times"),
        ({"process": "ncsn", "sigma_min": 2.0, "sigma_max": 1.0}, "does not increase"),
        ({"process": "gamma", "objective": "sliced"}, "set generation.objective=denoising"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(Generation, **options)


def test_images_out_of_range_and_partitions_that_are_not_there_are_refused():
    workload = make(Generation, max_examples=50)
    with pytest.raises(DataError, match="there is no partition 4; this workload has 4"):
        workload.data(4, "train")
    with pytest.raises(DataError, match=r"hold values from 0 to 255; denoising is made for \[-1, 1\]"):
        workload.loss(workload.model(), ArrayDataset({"x": torch.tensor([0.0, 255.0]).view(2, 1, 1, 1)})[:])


@pytest.mark.parametrize("strategy", ["scaffold", "source_only"])
def test_strategies_train_it_without_labels(tmp_path, strategy):
    options = {
        "strategy": strategy,
        "data.max_examples": 60,
        "data.num_clients": 2,
        "generation.samples": 0,
        "client.steps": 1,
        "client.batch_size": 4,
        "server.steps": 1,
        "server.batch_size": 4,
    }
    if strategy == "scaffold":
        options |= {"client.optimizer": "sgd", "client.max_grad_norm": 0}
    result = fedlab.run("ddpm-mnist", runs=tmp_path, rounds=1, threads=1, overrides=options)
    assert set(result.rounds[-1]["clients"]) == {"shard-0", "shard-1"}
    assert all(0 < values["loss"] < 2 for values in result.rounds[-1]["clients"].values())


def test_a_checkpoint_of_another_model_is_refused():
    wide = Generation(network="small").model().state_dict()
    with pytest.raises(DataError, match=r"another model than UNet: \d+ arrays without a match, the first is "):
        load(Generation().model(), wide, torch.device("cpu"))
    with pytest.raises(DataError, match="of another model than RefineNet"):
        load(Generation(network="ncsn2", process="ncsn", width=4).model(), wide, torch.device("cpu"))
