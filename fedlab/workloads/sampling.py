"""Sampling from a diffusion model or a score network, and the samples' metrics: one pipeline for every strategy.

1. ``generation.samples`` images are generated from noise: with ``ncsn`` by annealed Langevin dynamics with NCSNv2's
   step and a last denoising step, else by DDIM; ``generation.sampler`` selects another sampler.
2. As many real images are taken evenly from the clients' test data, and as many from their training data.
3. All go through the classifier of digits that ships with the package (``fedlab/models/digit_classifier.py``): 28 x 28
   gray pixels to 64 features and a label.
4. ``frechet``, ``precision`` and ``recall`` compare generated with real test images, ``frechet_real`` and so on
   training with test images: the values of perfect samples at this count. ``label_distance`` and ``label_kl`` compare
   the predicted labels of generated images with the labels that clients train on.
5. Images that are not digits (``generation.source=cifar10``) are generated and shown only, since the classifier does
   not apply. ``generation.inception`` adds ``inception_frechet``, the published FID, to either.

The server of a real federation has neither real images nor labels: these metrics are for experiments.

**Pictures**: ``samples``, generated and real images; ``labels``, generated ones by predicted label, with the fraction
of each label among them and on the clients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlab.diffusion import samplers, sigmas
from fedlab.diffusion.denoising import Backbone
from fedlab.diffusion.samplers import StepCallback
from fedlab.errors import ConfigError
from fedlab.evaluation import digit_labels, image_grids, image_quality, inception
from fedlab.models.digit_classifier import CLASSES
from fedlab.seeds import seeded
from fedlab.training import Progress, null_progress
from fedlab.workload import Score
from fedlab.workloads.denoising import Denoising

SAMPLE_BATCH = 250  # images generated together
MIN_SAMPLES = 8  # smallest sample for which the metrics are defined
CHAIN_STEPS, LADDER_STEPS = 50, 20


def check(workload: Denoising) -> None:
    """Validate the sampler, which must fit the noise, its steps and the number of samples.

    Raises
    ------
    ConfigError
        With the option to change.
    """
    if 0 < workload.samples < MIN_SAMPLES:
        raise ConfigError(
            f"option 'generation.samples' is {workload.samples}; ask for at least {MIN_SAMPLES}, or for 0: none"
        )
    if workload.inception and (reason := inception.unavailable_reason()):
        raise ConfigError(f"generation.inception=true asks for the published FID, and {reason}")
    if sampler_of(workload) != "langevin":
        samplers.timesteps(workload.num_timesteps, steps_of(workload))
    elif not workload.noise_schedule.gaussian:
        raise ConfigError("generation.sampler=langevin needs a score, and Gamma noise has none; use ddim or ancestral")


def sampler_of(workload: Denoising) -> str:
    """Return the name of the sampler; "auto" is langevin with ``ncsn``, else ddim."""
    if workload.sampler != "auto":
        return workload.sampler
    return "langevin" if workload.process == "ncsn" else "ddim"


def steps_of(workload: Denoising) -> int:
    """Return the number of sampling steps; 0 is the sampler's default."""
    if sampler_of(workload) == "langevin":
        return workload.sampling_steps or LADDER_STEPS
    return workload.sampling_steps or min(CHAIN_STEPS, workload.num_timesteps)


@torch.no_grad()
def draw(workload: Denoising, model: nn.Module, count: int, progress: Progress = null_progress) -> Tensor:
    """Return images (count, channels, size, size) in [-1, 1], on the CPU, from torch's current random stream."""
    law, device, backbone = workload.noise_schedule, next(model.parameters()).device, workload.backbone(model.eval())
    way, drawn = SAMPLERS[sampler_of(workload)], []
    for begin in range(0, count, SAMPLE_BATCH):
        some = min(SAMPLE_BATCH, count - begin)
        shape = (some, workload.channels, workload.size, workload.size)

        def tell(done: int, total: int, begin: int = begin, some: int = some) -> None:
            progress("samples", begin + some * done // total, count)

        noise = samplers.initial_noise(law, shape, device)
        drawn.append(way(workload, backbone, noise, tell).clamp(-1, 1).cpu())
    return torch.cat(drawn)


def _visiting(
    step: samplers.SamplerStep, workload: Denoising, backbone: Backbone, noise: Tensor, tell: StepCallback
) -> Tensor:
    return samplers.sample(workload.noise_schedule, backbone, noise, step, steps_of(workload), on_step=tell)


def _langevin(workload: Denoising, backbone: Backbone, noise: Tensor, tell: StepCallback) -> Tensor:
    law, steps = workload.noise_schedule, steps_of(workload)
    factor = (law.at(law.num_levels - 1)[1] / law.at(0)[1]) ** (1 / (law.num_levels - 1))
    step = workload.langevin_step or sigmas.best_step(factor, steps)
    return samplers.annealed_langevin(
        law, backbone, noise, steps=steps, step=step, denoise=workload.denoise, on_step=tell
    )


def _ddim(workload: Denoising, backbone: Backbone, noise: Tensor, tell: StepCallback) -> Tensor:
    return _visiting(partial(samplers.ddim_step, eta=workload.eta), workload, backbone, noise, tell)


SAMPLERS: Mapping[str, Callable[[Denoising, Backbone, Tensor, StepCallback], Tensor]] = {
    "ddim": _ddim,
    "ancestral": partial(_visiting, samplers.ancestral_step),
    "langevin": _langevin,
}


def score(workload: Denoising, model: nn.Module, progress: Progress = null_progress) -> Score:
    """Return metrics and pictures of ``generation.samples`` generated images."""
    drawn = draw(workload, model, workload.samples, progress)
    if not workload.of_digits:
        real = real_images(workload, "test")
        return Score(_published(workload, drawn, real), {"samples": image_grids.generated_and_real(drawn, real)})
    return _of_digits(workload, drawn)


def _of_digits(workload: Denoising, drawn: Tensor) -> Score:
    real = _real(workload)
    features, labels = digit_labels.classify_digits(drawn)
    count = min(len(drawn), len(real.features))
    metrics = {
        **image_quality.distribution_metrics(features[:count], real.features[:count]),
        **image_quality.label_distances(labels, real.mixture),
        **real.floor,
        **_published(workload, drawn, real.images),
    }
    pictures = {
        "samples": image_grids.generated_and_real(drawn, real.images),
        "labels": image_grids.label_plot(drawn, labels, real.mixtures),
    }
    return Score(metrics, pictures)


def _published(workload: Denoising, drawn: Tensor, real: Tensor) -> dict[str, float]:
    return {"inception_frechet": inception.fid(drawn, real)} if workload.inception else {}


class _Real:
    """Real images of all clients, the reference of generated ones.

    Attributes
    ----------
    images, features
        Test images (n, channels, size, size) and their features (n, 64).
    mixtures
        Number of training images of each label (10,), by client.
    mixture
        Fraction of each label in all of them (10,).
    floor
        Metrics of the clients' training images in place of generated ones.
    """

    def __init__(self, workload: Denoising) -> None:
        with seeded(workload.data_config.seed, "real images"):  # random flips do not depend on the round
            self.images, seen = (real_images(workload, part) for part in ("test", "train"))
        self.features, _ = digit_labels.classify_digits(self.images)
        self.mixtures: dict[str, NDArray[np.float64]] = {}
        for partition, name in enumerate(workload.clients):
            labels = workload.labels(partition)
            assert labels is not None
            self.mixtures[name] = np.bincount(labels.numpy(), minlength=CLASSES).astype(np.float64)
        features, labels = digit_labels.classify_digits(seen)
        total = np.sum(list(self.mixtures.values()), axis=0)
        self.mixture = total / total.sum()
        count = min(len(features), len(self.features))
        found = {
            **image_quality.distribution_metrics(features[:count], self.features[:count]),
            **image_quality.label_distances(labels, self.mixture),
        }
        self.floor = {f"{name}_real": value for name, value in found.items()}


_real = lru_cache(maxsize=4)(_Real)


def real_images(workload: Denoising, part: str) -> Tensor:
    """Return ``samples`` real images of all clients, in proportion to their data, or all if there are fewer.

    Parameters
    ----------
    part
        "train" or "test".
    """
    parts = [workload.data(partition, part) for partition in range(len(workload.clients))]
    sizes = [len(data) for data in parts] if workload.setting == "shards" else [1] * len(parts)
    each = [round(workload.samples * size / sum(sizes)) for size in sizes]
    x = torch.cat([data.subsample(max(count, 1))[:]["x"] for data, count in zip(parts, each, strict=True)])
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(workload.data_config.seed))][
        : workload.samples
    ]
