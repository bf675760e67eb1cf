"""Workload of diffusion models and score networks: noise, network, data and objective.

:mod:`fedlab.workloads.generation` adds what its samples are worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.config.sections import split_names
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.digits import datasets
from fedlab.data.images import image_sets
from fedlab.data.pinned import send
from fedlab.data.pixels import bytes_to_float
from fedlab.data.sources import DataSource
from fedlab.diffusion import denoising, noise_schedule, sigmas
from fedlab.diffusion.noise_schedule import NoiseSchedule
from fedlab.errors import ConfigError, suggest
from fedlab.models.mapped import is_mapped
from fedlab.models.refinenet import RefineNet
from fedlab.models.unet import SHAPES, UNet, check_image_size
from fedlab.precision import autocast
from fedlab.seeds import seeded
from fedlab.workloads import domain_suite, shards

EVALUATION_BATCH = 250
OTHERS = ("cifar10",)  # sources that are not digits: 32 pixels, with test images
THETA = 1e-3  # theta_0 of the Gamma chain


@dataclass(frozen=True)
class Denoising:
    """The workload's options and its methods, see :class:`fedlab.workload.Workload`."""

    loss_columns: ClassVar[tuple[str, ...]] = ("x",)
    test_partition: ClassVar[str] = "dirichlet"  # every shard tests on the same mix of classes

    source: str = Field(
        "mnist", description="of the server, and of the clients with setting=shards: a digit domain, or cifar10"
    )
    targets: str = Field("usps,mnist_m,optdigits,synthdigits", description="the clients' domains, setting=domains")
    setting: Literal["shards", "domains"] = Field(
        "shards", description="client data: parts of the source, or a domain each"
    )
    size: int = Field(28, description="pixels a side: 32, 28 (without the margin of 2) or 16 (means of 2 x 2)")
    channels: int = Field(1, description="channels: 3, or 1, their mean")
    process: Literal["ddpm", "gamma", "ncsn"] = Field(
        "ddpm", description="noise: a Gaussian chain, a Gamma chain, or levels of Gaussian noise added to the image"
    )
    num_timesteps: int = Field(
        1000, ge=2, le=100_000, description="noise levels; the papers have 1000 (ddpm) and 10 (ncsn)"
    )
    schedule: Literal["linear", "cosine"] = Field("linear", description="betas of a chain")
    sigma_min: float = Field(0.02, gt=0, allow_inf_nan=False, description="smallest noise of ncsn, pixels in [-1, 1]")
    sigma_max: float = Field(2.0, gt=0, allow_inf_nan=False, description="largest noise of ncsn")
    objective: Literal["denoising", "sliced"] = Field(
        "denoising",
        description="predict the noise, or sliced score matching by random projections (Gaussian noise only)",
    )
    network: Literal["quick", "tiny", "small", "medium", "cifar10", "ncsn1", "ncsn2"] = Field(
        "tiny", description="a U-Net by size, cifar10 being DDPM's, or the RefineNet of NCSN or NCSNv2"
    )
    width: int = Field(
        64, ge=4, description="first width of a RefineNet; the papers have 64 for MNIST, 128 for CIFAR-10"
    )
    hflip: bool = Field(False, description="mirror half of the training images; not for digits")
    eval_images: int = Field(500, ge=0, description="held-out images of each client in its loss; 0: all")
    samples: int = Field(200, ge=0, description="images generated for the server's metrics; 0: none")
    sampler: Literal["auto", "ddim", "ancestral", "langevin"] = Field(
        "auto", description="sampler; auto: langevin for ncsn, else ddim"
    )
    sampling_steps: int = Field(
        0, ge=0, description="steps of ddim and ancestral (S), or Langevin steps at each level; 0: 50, and 20"
    )
    eta: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of fresh noise in ddim; 0: deterministic, 1: as ancestral sampling",
    )
    langevin_step: float = Field(
        0.0,
        ge=0,
        le=2,
        description="step size as a fraction of a level's variance; 0: NCSNv2's choice for the number of steps",
    )
    inception: bool = Field(False, description="compute the published FID as well; needs torchmetrics and its weights")
    denoise: bool = Field(True, description="remove the last level's noise after Langevin steps")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Validate the domains, the noise, and the combination of process, objective and sampler."""
        for domain in self.domains:
            if domain not in datasets.DOMAINS:
                raise ConfigError(f"unknown digit domain {domain!r}; {suggest(domain, datasets.DOMAINS)}")
        sources = [*datasets.DOMAINS, *OTHERS]
        if self.source not in sources:
            raise ConfigError(f"unknown digit domain {self.source!r}; {suggest(self.source, sources)}")
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise ConfigError(f"option 'generation.targets' is {self.targets!r}; name at least one domain, each once")
        for option, value, known in (("size", self.size, SIZES), ("channels", self.channels, (1, 3))):
            if value not in known:
                raise ConfigError(
                    f"option 'generation.{option}' is {value}; {' or '.join(map(str, known))} is expected"
                )
        if self.objective == "sliced" and not self.noise_schedule.gaussian:
            raise ConfigError(
                "generation.objective=sliced learns a score, which Gamma noise does not have; set "
                "generation.objective=denoising, or a Gaussian process (ddpm or ncsn)"
            )
        if self.network in SHAPES:
            check_image_size(self.size, SHAPES[self.network])

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the target domains."""
        return split_names("generation.targets", self.targets)

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients: one for each shard of the source, or for each domain."""
        if self.setting == "shards":
            return shards.numbered_names("shard", self.data_config.num_shards)
        return self.domains

    @property
    def partition(self) -> str:
        """Scheme by which the source is divided among clients."""
        return self.data_config.partition_kind(*domain_suite.KINDS)

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        if self.setting == "shards":
            return shards.unused_of_shards(self.partition)
        return frozenset(
            {"data.partition", "data.alpha", "data.min_examples", "data.test_classes", "data.clients_per_domain"}
        )

    @property
    def of_digits(self) -> bool:
        """True if all images are of digits."""
        return self.source in datasets.DOMAINS

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """Noise schedule of the process."""
        return _law(self)

    def model(self) -> nn.Module:
        """Return a fresh network: noisy images (batch, channels, size, size) and levels (batch,) to noise or score."""
        return NETWORKS[self.network](self)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return images (channels, size, size) in [-1, 1] as ``x``.

        Raises
        ------
        DataError, ConfigError
            When files are missing, there is no such partition or split, or a shard gets too few images.
        """
        domain_suite.check_partition(partition, self.clients)
        if partition is None or self.setting == "domains":
            x, _ = self._read(self.source if partition is None else self.domains[partition], split)
            return self._images({"x": x}, split)
        return shards.shard(self, partition, split).without("y")

    def pool(self, split: str) -> ArrayDataset:
        """Return all images of the source, which shards divide, with their labels ``y``."""
        x, y = self._read(self.source, split, with_labels=True)
        assert y is not None
        return self._images({"x": x, "y": y}, split)

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        of_source = partition is None or self.setting == "shards"
        name = self.source if of_source else self.domains[partition or 0]
        return [image_sets.image_source(name, self.data_config.root_folder, len(self._read(name, "train")[0]))]

    def labels(self, partition: int) -> Tensor | None:
        """See :class:`fedlab.workload.SupportsHiddenLabels`."""
        if self.setting == "domains":
            return self._read(self.domains[partition], "train", with_labels=True)[1]
        return shards.shard_labels(self, partition)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the objective, a scalar, with levels and noise from torch's current random stream.

        Raises
        ------
        DataError
            When images are outside [-1, 1] or not of this workload's shape.
        """
        if not is_mapped(batch["x"]):
            self.check_batch(batch)
        return OBJECTIVES[self.objective](self.noise_schedule, self.backbone(model), batch["x"])

    def check_batch(self, batch: Batch) -> None:
        """See :class:`fedlab.workload.SupportsBatchChecks`; images belong in [-1, 1].

        Raises
        ------
        DataError
            When one is outside.
        """
        denoising.check_images(batch["x"])

    def backbone(self, model: nn.Module) -> denoising.Backbone:
        """Return a model as objective and samplers call it, in the precision of this process."""

        def in_precision(x: Tensor, level: Tensor) -> Tensor:
            with autocast():
                predicted: Tensor = model(x, level)
            return predicted.to(x.dtype)

        return in_precision

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return the denoising loss, with the same levels and noise in every round."""
        model.eval()
        device, law, total = next(model.parameters()).device, self.noise_schedule, 0.0
        data, backbone = data.subsample(self.eval_images or len(data)), self.backbone(model)
        with seeded(self.data_config.seed, "test noise"):
            spread = torch.linspace(0, law.num_levels - 1, len(data)).round().long()
            levels = ArrayDataset({"level": spread[torch.randperm(len(data))]})
            both = zip(data.batches(EVALUATION_BATCH), levels.batches(EVALUATION_BATCH), strict=True)
            for batch, level in ((images, of["level"]) for images, of in both):
                drawn = law.noise(batch["x"], level)
                moved = (part.to(device) for part in (batch["x"], level, drawn))
                total += float(denoising.denoising_errors(law, backbone, *moved).double().sum())
        return {"loss": total / len(data)}

    def _read(self, name: str, split: str, with_labels: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return bytes (images, 3, 32, 32), and labels (images,) unless training images are read without."""
        if name in OTHERS:
            found = image_sets.load_image_set(name, self.data_config.root_folder, split == "test")
            return found.x[: self.data_config.max_examples or None], found.y[: self.data_config.max_examples or None]
        bound = name != self.source
        columns = datasets.load_digits(
            name, split, self.data_config.root_folder, with_labels=with_labels, upper_bound=bound
        ).columns
        y = columns.get("y")
        return columns["x"][: self.data_config.max_examples or None], None if y is None else y[
            : self.data_config.max_examples or None
        ]

    def _images(self, columns: Batch, split: str) -> ArrayDataset:
        def read(batch: Batch) -> Batch:
            x = SIZES[self.size](bytes_to_float(batch["x"]))
            x = x.mean(1, keepdim=True) if self.channels == 1 else x
            if self.hflip and split == "train":
                x = torch.where(send(torch.rand(len(x), 1, 1, 1) < 0.5, x.device), x.flip(3), x)
            return {"x": x}

        return ArrayDataset(columns, read)


def _cut(x: Tensor) -> Tensor:
    return x[..., 2:-2, 2:-2]


def _halve(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2)


def _whole(x: Tensor) -> Tensor:
    return x


@lru_cache(maxsize=8)
def _law(workload: Denoising) -> NoiseSchedule:
    """Return a workload's noise schedule, cached."""
    return LAWS[workload.process](workload)


def _chain(workload: Denoising, theta: float | None = None) -> NoiseSchedule:
    return noise_schedule.ddpm_schedule(SCHEDULES[workload.schedule](workload.num_timesteps), theta)


def _ladder(workload: Denoising) -> NoiseSchedule:
    levels = sigmas.geometric_sigmas(workload.sigma_min, workload.sigma_max, workload.num_timesteps)
    return noise_schedule.ncsn_schedule(levels, predicts_score=workload.network == "ncsn1")


def _unet(shape: str, workload: Denoising) -> nn.Module:
    return UNet(workload.channels, workload.size, SHAPES[shape])


def _refinenet(conditional: bool, workload: Denoising) -> nn.Module:
    levels = workload.num_timesteps if conditional else 0
    return RefineNet(workload.channels, workload.size, workload.width, levels)


SIZES: Mapping[int, Callable[[Tensor], Tensor]] = {16: _halve, 28: _cut, 32: _whole}  # of the 32 that domains have
SCHEDULES: Mapping[str, Callable[[int], Tensor]] = {
    "linear": noise_schedule.ddpm_betas,
    "cosine": noise_schedule.cosine_betas,
}
LAWS: Mapping[str, Callable[[Denoising], NoiseSchedule]] = {
    "ddpm": _chain,
    "gamma": partial(_chain, theta=THETA),
    "ncsn": _ladder,
}
OBJECTIVES = {"denoising": denoising.denoising_loss, "sliced": denoising.sliced_loss}
NETWORKS: Mapping[str, Callable[[Denoising], nn.Module]] = {
    **{shape: partial(_unet, shape) for shape in SHAPES},
    "ncsn1": partial(_refinenet, True),
    "ncsn2": partial(_refinenet, False),
}
