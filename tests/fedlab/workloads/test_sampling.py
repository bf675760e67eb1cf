"""Images that are drawn: by which sampler, what is said of them, and what is refused."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import fedlab
from configs import make
from fedlab.data.images import image_sets
from fedlab.data.pixels import bytes_to_float
from fedlab.diffusion import samplers, sigmas
from fedlab.errors import ConfigError
from fedlab.evaluation import inception
from fedlab.precision import computing_in
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.workload import Score, SupportsHiddenLabels, SupportsScoring
from fedlab.workloads import sampling
from fedlab.workloads.generation import Generation

SMALL = {"max_examples": 60, "num_clients": 2, "samples": 12}
METRICS = {"frechet", "precision", "recall", "label_distance", "label_kl"}


def model_of(workload):
    with seeded("model"):
        model = workload.model()
        torch.nn.init.normal_(model.out.weight, std=0.1)
    return model.eval()


def test_ddim_is_the_samplers_own_in_parts_of_a_batch(monkeypatch):
    workload, told = make(Generation, **SMALL, sampling_steps=3), []
    model = model_of(workload)
    monkeypatch.setattr(sampling, "SAMPLE_BATCH", 4)
    with seeded("draw"):
        drawn = sampling.draw(workload, model, 6, lambda *news: told.append(news))
    with seeded("draw"):
        law = workload.noise_schedule
        wanted = [
            samplers.sample(law, model, samplers.initial_noise(law, (some, 1, 28, 28)), samplers.ddim_step, 3)
            for some in (4, 2)
        ]
    assert torch.equal(drawn, torch.cat(wanted).clamp(-1, 1))
    assert told[-1] == ("samples", 6, 6)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_eta_is_ddims_share_of_fresh_noise():
    workload = make(Generation, **SMALL, sampling_steps=3, eta=0.5)
    model, law = model_of(workload), workload.noise_schedule
    with seeded("draw"):
        drawn = sampling.draw(workload, model, 4)
    with seeded("draw"):
        start = samplers.initial_noise(law, (4, 1, 28, 28))
        wanted = samplers.sample(law, model, start, partial(samplers.ddim_step, eta=0.5), 3)
    assert torch.equal(drawn, wanted.clamp(-1, 1))


def test_langevin_takes_ncsnv2s_step_for_its_ladder_unless_told():
    for given in (0.0, 0.2):
        workload = make(Generation, **SMALL, process="ncsn", num_timesteps=3, sampling_steps=2, langevin_step=given)
        model, law = model_of(workload), workload.noise_schedule
        step = given or sigmas.best_step(10.0, 2)  # 0.02, 0.2, 2
        with seeded("draw"):
            drawn = sampling.draw(workload, model, 4)
        with seeded("draw"):
            start = samplers.initial_noise(law, (4, 1, 28, 28))
            wanted = samplers.annealed_langevin(law, model, start, steps=2, step=step)
        assert torch.allclose(drawn, wanted.clamp(-1, 1), atol=1e-5)


def test_auto_is_by_the_law_and_steps_by_the_sampler():
    kinds = [
        Generation(),
        Generation(process="gamma"),
        Generation(process="ncsn", num_timesteps=10),
        Generation(num_timesteps=20),
    ]
    assert [sampling.sampler_of(one) for one in kinds] == ["ddim", "ddim", "langevin", "ddim"]
    assert [sampling.steps_of(one) for one in kinds] == [50, 50, 20, 20]
    assert sampling.steps_of(Generation(process="ncsn", num_timesteps=10, sampler="ancestral")) == 10


@pytest.mark.engine
def test_the_score_of_real_images_is_the_floor_and_that_of_noise_is_not(monkeypatch):
    workload = make(Generation, num_clients=2, max_examples=400, samples=200)
    real = workload.data(None, "train")[:200]["x"]
    monkeypatch.setattr(sampling, "draw", lambda *_: real)
    found = workload.score(torch.nn.Linear(1, 1))
    assert set(found.metrics) == METRICS | {f"{name}_real" for name in METRICS}
    assert set(found.pictures) == {"samples", "labels"}
    assert found.metrics["frechet"] < 2 * found.metrics["frechet_real"]
    assert found.metrics["label_distance"] < 0.15
    with seeded("noise"):
        monkeypatch.setattr(sampling, "draw", lambda *_: torch.randn(200, 1, 28, 28).clamp(-1, 1))
        noise = workload.score(torch.nn.Linear(1, 1)).metrics
    assert noise["frechet"] > 5 * found.metrics["frechet"]
    assert noise["recall"] < 0.1 < found.metrics["recall"]
    assert noise["label_distance"] > 0.25


def test_images_that_are_no_digits_are_drawn_and_shown_and_flipped_in_training(monkeypatch):
    with seeded("cifar"):
        made = image_sets.LabeledImages(torch.randint(256, (120, 3, 32, 32)).byte(), torch.arange(120) % 10)
    monkeypatch.setattr(image_sets, "load_image_set", lambda name, root, test: made)
    overrides = {"source": "cifar10", "size": 32, "channels": 3, "num_clients": 2, "samples": 8}
    workload = make(Generation, **overrides, hflip=True, sampling_steps=1)
    exact = bytes_to_float(made.x)
    assert torch.equal(workload.data(None, "test")[:]["x"], exact)
    with seeded("mirror"):
        seen = workload.data(None, "train")[:]["x"]
    flipped = (seen == exact.flip(3)).flatten(1).all(1)
    assert ((seen == exact).flatten(1).all(1) ^ flipped).all()
    assert 30 < flipped.sum() < 90
    assert sum(len(workload.data(partition, "train")) for partition in range(2)) == 120
    found = workload.score(model_of(workload))
    assert dict(found.metrics) == {}
    assert set(found.pictures) == {"samples"}


def test_the_published_distance_is_taken_where_it_can_be(monkeypatch):
    monkeypatch.setattr(inception, "unavailable_reason", lambda: "")
    monkeypatch.setattr(inception, "fid", lambda drawn, real: float(len(drawn) + len(real)))
    monkeypatch.setattr(sampling, "draw", lambda *_: torch.zeros(12, 1, 28, 28))
    workload = make(Generation, **SMALL, inception=True)
    assert workload.score(torch.nn.Linear(1, 1)).metrics["inception_frechet"] == 24


def test_labels_are_those_of_each_clients_training_part():
    workload = make(Generation, max_examples=100, num_clients=5, partition="shards")
    assert isinstance(workload, SupportsHiddenLabels) and isinstance(workload, SupportsScoring)
    held = [workload.labels(partition) for partition in range(5)]
    assert [len(one) for one in held] == [len(workload.data(partition, "train")) for partition in range(5)]
    assert sum(len(one) for one in held) == 100
    assert max(len(np.unique(one)) for one in held) <= 5  # two pieces of a sorted whole
    iid = make(Generation, max_examples=100, num_clients=2, partition="iid")
    assert len(iid.labels(0)) == len(iid.labels(1)) == 50
    usps = make(Generation, setting="domains", targets="usps,mnist_m", max_examples=20)
    assert usps.labels(1).shape == (20,)


def test_the_floor_does_not_depend_on_what_was_drawn_before():
    workload = make(Generation, max_examples=60, num_clients=2, samples=40, hflip=True)
    found = []
    for seed in (1, 2):
        with seeded(seed, "ambient"):
            found.append(sampling._Real(workload).floor)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"num_timesteps": 20, "sampling_steps": 21}, "21 sampling steps were asked for and the noise has 20 levels"),
        ({"samples": 3}, "'generation.samples' is 3; ask for at least 8, or for 0"),
        ({"process": "gamma", "sampler": "langevin"}, "sampler=langevin needs a score"),
        ({"inception": True}, "asks for the published FID, and torchmetrics and torch_fidelity cannot be imported"),
    ],
)
def test_what_cannot_be_drawn_is_refused(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(Generation, **overrides)


@pytest.mark.engine
def test_a_run_keeps_metrics_and_pictures_of_scored_rounds(tmp_path):
    overrides = {"data.max_examples": 60, "data.num_clients": 2, "generation.samples": 12, "generation.network": "tiny"}
    overrides |= {"generation.sampling_steps": 2, "client.steps": 1, "client.batch_size": 4, "sample_every": 3}
    result = fedlab.run("ddpm-mnist", runs=tmp_path, rounds=2, threads=1, overrides=overrides)
    scored = [record["round"] for record in result.rounds if set(record["score"]) >= METRICS]
    assert scored == [0, 2]
    pictures = RunDirectory(result.directory).images()
    assert {name: sorted(rounds) for name, rounds in pictures.items()} == {"samples": scored, "labels": scored}


def test_without_samples_nothing_is_scored():
    assert Generation(samples=0).score(torch.nn.Linear(1, 1)) == Score()


def test_bfloat16_is_close_to_float32_and_gives_float32():
    workload = make(Generation, **SMALL)
    model, x = model_of(workload), workload.data(None, "train")[:4]["x"]
    level = torch.tensor([0, 100, 500, 999])
    exact = workload.backbone(model)(x, level)
    with computing_in("bf16", torch.device("cpu")):
        rough = workload.backbone(model)(x, level)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.allclose(rough, exact, atol=0.05 * exact.abs().max().item())
