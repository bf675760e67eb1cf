"""Digits to draw: a diffusion model or a score network, learned from images without labels by denoising.

Clients hold parts of the source domain, label-skewed or not, or a domain each; labels are read to share images out and
are never given to anybody. The server holds all of the source's training images: for ``source_only``, which is then the
centralised bound, and for pre-training.

``generation.law`` is the noise: ``ddpm`` and ``gamma`` are chains of ``levels`` steps by ``schedule``, ``ncsn`` a
ladder from ``sigma_min`` to ``sigma_max``. Any network goes with any law; ``ncsn1`` is the one whose norms know the
level and, on a ladder, whose output is the score itself.

**Source**: see ``fedlab/diffusion`` and ``fedlab/models/unet.py``, ``refinenet.py``.

**Departures**: (1) optimiser and gradient clipping belong to strategies (``client.optimiser``, ``client.clip``), and
there is no warm-up; (2) an averaged model is kept where a strategy keeps one (``server.average``); (3) images are not
dequantised.

**Metrics** of a client: ``loss``, the mean squared error of the noise found in held-out images, 1 for a network that
finds none; each image at one level, evenly spread, with the same noise in every round. **Of the server**, each
``score_every`` rounds: those of ``fedlab/workloads/sampling.py`` over ``generation.samples`` drawn images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from fedlab.data.dataset import Batch, ArrayDataset
from fedlab.data.digits import datasets
from fedlab.data.images import image_sets
from fedlab.data.partitioners import dirichlet
from fedlab.data.partitioners import partition_indices
from fedlab.data.pixels import bytes_to_float
from fedlab.diffusion import denoising, noise_schedule, sigmas
from fedlab.diffusion.noise_schedule import NoiseSchedule
from fedlab.errors import ConfigError, DataError, near_match
from fedlab.models.refinenet import RefineNet
from fedlab.models.unet import SHAPES, UNet, check_image_size
from fedlab.seeds import seeded
from fedlab.training import Progress, silent
from fedlab.workload import Score
from fedlab.workloads import sampling

EVALUATION_BATCH = 250
OTHERS = ("cifar10",)  # sources that are no digits: 32 pixels, with a part to test on
THETA = 1e-3  # theta_0 of the Gamma chain


@dataclass(frozen=True)
class Generation:
    """The workload's knobs and its answers, see :class:`fedlab.workload.Workload`."""

    loss_columns: ClassVar[tuple[str, ...]] = ("x",)

    source: str = Field(
        "mnist", description="of the server, and of the clients with setting=shards: a digit domain, or cifar10"
    )
    targets: str = Field("usps,mnist_m,optdigits,synthdigits", description="the clients' domains, setting=domains")
    setting: Literal["shards", "domains"] = Field(
        "shards", description="what clients hold: parts of the source, or a domain each"
    )
    shards: int = Field(4, ge=1, description="clients of setting=shards")
    partition: Literal["iid", "dirichlet", "shards", "quantity"] = Field(
        "dirichlet",
        description="how the source is shared out, see `fedlab.data.partitioners`; shards: two classes or so each",
    )
    alpha: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="Dirichlet concentration of labels or sizes; small is skewed"
    )
    limit: int = Field(0, ge=0, description="at most so many images of each part, for a quick look; 0: all")
    size: int = Field(28, description="pixels a side: 32, 28 (without the margin of 2) or 16 (means of 2 x 2)")
    colours: int = Field(1, description="channels: 3, or 1, their mean")
    law: Literal["ddpm", "gamma", "ncsn"] = Field(
        "ddpm", description="noise: a Gaussian chain, a Gamma chain, or a ladder of Gaussian noise on top of the image"
    )
    levels: int = Field(1000, ge=2, le=100_000, description="of noise; the papers have 1000 (ddpm) and 10 (ncsn)")
    schedule: Literal["linear", "cosine"] = Field("linear", description="betas of a chain")
    sigma_min: float = Field(0.02, gt=0, allow_inf_nan=False, description="least noise of a ladder, pixels in [-1, 1]")
    sigma_max: float = Field(2.0, gt=0, allow_inf_nan=False, description="most noise of a ladder")
    objective: Literal["denoising", "sliced"] = Field(
        "denoising", description="find the noise, or sliced score matching by random projections (Gaussian noise only)"
    )
    network: Literal["quick", "tiny", "small", "medium", "cifar10", "ncsn1", "ncsn2"] = Field(
        "tiny", description="a U-Net by size, cifar10 being DDPM's, or the RefineNet of NCSN or NCSNv2"
    )
    width: int = Field(
        64, ge=4, description="first width of a RefineNet; the papers have 64 for MNIST, 128 for CIFAR-10"
    )
    mirror: bool = Field(False, description="mirror half of the training images; not for digits")
    bf16: bool = Field(False, description="networks calculate in bfloat16 where torch's autocast does; weights do not")
    tested: int = Field(500, ge=0, description="held-out images of each client that the loss is taken on; 0: all")
    samples: int = Field(200, ge=0, description="images drawn for a score; 0: none")
    sampler: Literal["auto", "ddim", "ancestral", "langevin"] = Field(
        "auto", description="how images are drawn; auto: langevin on a ladder, ddim on a chain"
    )
    sampling_steps: int = Field(
        0, ge=0, description="levels that ddim and ancestral visit (S), Langevin steps at each level; 0: 50, and 20"
    )
    eta: float = Field(
        0.0,
        ge=0,
        le=1,
        description="of ddim: share of fresh noise; 0: none, 1 corrects more of what a network gets wrong",
    )
    langevin_step: float = Field(
        0.0, ge=0, le=2, description="as a share of a level's variance; 0: NCSNv2's choice for so many steps"
    )
    inception: bool = Field(False, description="take the published FID as well; needs torchmetrics and its weights")
    denoise: bool = Field(True, description="take the last level's noise away after Langevin steps")
    data_root: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse domains that do not exist, noise that does not grow, and what does not go together."""
        for domain in self.domains:
            if domain not in datasets.DOMAINS:
                raise ConfigError(f"unknown digit domain {domain!r}; {near_match(domain, datasets.DOMAINS)}")
        sources = [*datasets.DOMAINS, *OTHERS]
        if self.source not in sources:
            raise ConfigError(f"unknown digit domain {self.source!r}; {near_match(self.source, sources)}")
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise ConfigError(f"knob 'generation.targets' is {self.targets!r}; name at least one domain, each once")
        for knob, value, known in (("size", self.size, SIZES), ("colours", self.colours, (1, 3))):
            if value not in known:
                raise ConfigError(f"knob 'generation.{knob}' is {value}; {' or '.join(map(str, known))} is expected")
        law = self.noise_schedule
        if self.objective == "sliced" and not law.gaussian:
            raise ConfigError(
                "generation.objective=sliced learns a score, which Gamma noise has no use for; set "
                "generation.objective=denoising, or a Gaussian law (ddpm or ncsn)"
            )
        if self.network in SHAPES:
            check_image_size(self.size, SHAPES[self.network])
        sampling.check(self)

    @property
    def domains(self) -> tuple[str, ...]:
        """The targets."""
        return tuple(name.strip() for name in self.targets.split(",") if name.strip())

    @property
    def clients(self) -> tuple[str, ...]:
        """A client for each shard of the source, or for each domain."""
        if self.setting == "shards":
            return tuple(f"shard-{number}" for number in range(self.shards))
        return self.domains

    @property
    def of_digits(self) -> bool:
        """Whether all images are of digits."""
        return self.source in datasets.DOMAINS

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """The law of the noise."""
        return _law(self)

    def model(self) -> nn.Module:
        """A fresh backbone: noisy images (batch, colours, size, size) and levels (batch,) to noise or score."""
        return NETWORKS[self.network](self)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Images (colours, size, size) in [-1, 1] as ``x``, and nothing else.

        Raises
        ------
        DataError, ConfigError
            When files are missing, there is no such partition or split, or a shard gets too few images.
        """
        if partition is not None and not 0 <= partition < len(self.clients):
            raise DataError(
                f"there is no partition {partition}; this workload has {len(self.clients)}: {', '.join(self.clients)}"
            )
        if partition is None or self.setting == "domains":
            x, _ = self._read(self.source if partition is None else self.domains[partition], split)
            return self._images(x, split)
        x, y = self._read(self.source, split, with_labels=True)
        assert y is not None
        if split == "train":
            rows = partition_indices(self.partition, y, self.shards, self.alpha, self.seed)
        else:
            rows = dirichlet(y, self.shards, float("inf"), self.seed)  # all test on the same mix of classes
        return self._images(x[rows[partition]], split)

    def labels(self, partition: int) -> Tensor | None:
        """See :class:`fedlab.workload.KnowsLabels`."""
        if self.setting == "domains":
            return self._read(self.domains[partition], "train", with_labels=True)[1]
        y = self._read(self.source, "train", with_labels=True)[1]
        assert y is not None
        return y[partition_indices(self.partition, y, self.shards, self.alpha, self.seed)[partition]]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The objective at levels and with noise from torch's current stream.

        Raises
        ------
        DataError
            When images are outside [-1, 1] or not of this workload's shape.
        """
        denoising.check_images(batch["x"])
        return OBJECTIVES[self.objective](self.noise_schedule, self.backbone(model), batch["x"])

    def backbone(self, model: nn.Module) -> denoising.Backbone:
        """A model as the objective and samplers take it: in the arithmetic that ``bf16`` asks for."""
        if not self.bf16:
            return model

        def halved(x: Tensor, level: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16):
                found: Tensor = model(x, level)
            return found.float()

        return halved

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """The denoising loss, with levels and noise that do not change."""
        model.eval()
        device, law, total = next(model.parameters()).device, self.noise_schedule, 0.0
        data, backbone = data.subsample(self.tested or len(data)), self.backbone(model)
        with seeded(self.seed, "test noise"):
            spread = torch.linspace(0, law.num_levels - 1, len(data)).round().long()
            levels = ArrayDataset({"level": spread[torch.randperm(len(data))]})
            both = zip(data.batches(EVALUATION_BATCH), levels.batches(EVALUATION_BATCH), strict=True)
            for batch, level in ((images, of["level"]) for images, of in both):
                drawn = law.noise(batch["x"], level)
                moved = (part.to(device) for part in (batch["x"], level, drawn))
                total += float(denoising.denoising_errors(law, backbone, *moved).double().sum())
        return {"loss": total / len(data)}

    def score(self, model: nn.Module, progress: Progress = silent) -> Score:
        """What images drawn from a model are worth, with pictures of them; from torch's current random stream."""
        return sampling.score(self, model, progress) if self.samples else Score()

    def _read(self, name: str, split: str, with_labels: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return bytes (images, 3, 32, 32), and labels (images,) unless training images are read without."""
        root = Path(self.data_root) if self.data_root else None
        if name in OTHERS:
            found = image_sets.load_image_set(name, root, split == "test")
            return found.x[: self.limit or None], found.y[: self.limit or None]
        bound = name != self.source
        columns = datasets.load_digits(name, split, root, with_labels=with_labels, upper_bound=bound).columns
        y = columns.get("y")
        return columns["x"][: self.limit or None], None if y is None else y[: self.limit or None]

    def _images(self, x: Tensor, split: str) -> ArrayDataset:
        def read(batch: Batch) -> Batch:
            x = SIZES[self.size](bytes_to_float(batch["x"]))
            x = x.mean(1, keepdim=True) if self.colours == 1 else x
            if self.mirror and split == "train":
                x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            return {"x": x}

        return ArrayDataset({"x": x}, read)


def _cut(x: Tensor) -> Tensor:
    return x[..., 2:-2, 2:-2]


def _halve(x: Tensor) -> Tensor:
    return avg_pool2d(x, 2)


def _whole(x: Tensor) -> Tensor:
    return x


@lru_cache(maxsize=8)
def _law(workload: Generation) -> NoiseSchedule:
    """The tables of a workload's noise."""
    return LAWS[workload.law](workload)


def _chain(workload: Generation, theta: float | None = None) -> NoiseSchedule:
    return noise_schedule.ddpm_schedule(SCHEDULES[workload.schedule](workload.levels), theta)


def _ladder(workload: Generation) -> NoiseSchedule:
    levels = sigmas.geometric_sigmas(workload.sigma_min, workload.sigma_max, workload.levels)
    return noise_schedule.ncsn_schedule(levels, predicts_score=workload.network == "ncsn1")


def _unet(shape: str, workload: Generation) -> nn.Module:
    return UNet(workload.colours, workload.size, SHAPES[shape])


def _refinenet(conditional: bool, workload: Generation) -> nn.Module:
    levels = workload.levels if conditional else 0
    return RefineNet(workload.colours, workload.size, workload.width, levels)


SIZES: Mapping[int, Callable[[Tensor], Tensor]] = {16: _halve, 28: _cut, 32: _whole}  # of the 32 that domains have
SCHEDULES: Mapping[str, Callable[[int], Tensor]] = {
    "linear": noise_schedule.ddpm_betas,
    "cosine": noise_schedule.cosine_betas,
}
LAWS: Mapping[str, Callable[[Generation], NoiseSchedule]] = {
    "ddpm": _chain,
    "gamma": partial(_chain, theta=THETA),
    "ncsn": _ladder,
}
OBJECTIVES = {"denoising": denoising.denoising_loss, "sliced": denoising.sliced_loss}
NETWORKS: Mapping[str, Callable[[Generation], nn.Module]] = {
    **{shape: partial(_unet, shape) for shape in SHAPES},
    "ncsn1": partial(_refinenet, True),
    "ncsn2": partial(_refinenet, False),
}
