"""Few-shot transfer: labeled base classes on the server, unlabeled images of very different targets on the clients.

A client's images are divided into two disjoint parts: 20 % to train on, without labels, and 80 % for episodes of new
classes. The feature extractor is evaluated: for each episode a classifier is fitted to a few labeled images.

**Source**: STARTUP (Phoo and Hariharan, ICLR 2021), whose evaluation is that of Guo et al., ECCV 2020.

**Departures**: (1) 32 or 64 pixels instead of 224; (2) test images are not resized and center-cropped; (3) images in
[-1, 1] instead of ImageNet's mean and deviation.

**Metrics**: ``accuracy_1-shot``, ``accuracy_5-shot``, ``accuracy_20-shot``, the mean accuracy over the episodes, and
``interval_...``, 1.96 standard errors of it. On the server's own validation images ``accuracy`` and ``loss`` of the
classifier of base classes. Episodes are the same for every method that runs with the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.config.sections import split_names
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.digits.augment import random_affine, random_recolor
from fedlab.data.images import image_sets, views
from fedlab.data.images.episodes import EpisodeDataset, check_episodes, sample_episodes
from fedlab.data.images.image_sets import IMAGE_SETS, LabeledImages
from fedlab.data.images.texture import Texture, textured
from fedlab.data.partitioners import PARTITIONS, partition_indices
from fedlab.data.pixels import to_rgb_float
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, suggest
from fedlab.losses.prototypes import episode_loss
from fedlab.metrics import FRACTION, Metric
from fedlab.models import linear_classifiers
from fedlab.models.batchnorm_stats import encode
from fedlab.models.convnet import ConvNet
from fedlab.models.feature_classifier import features_of
from fedlab.models.mixer import Mixer, MixerShape
from fedlab.models.resnet10 import ResNet10
from fedlab.seeds import seeded
from fedlab.workload import WorkloadSpec
from fedlab.workloads import domain_suite
from fedlab.workloads.domain_suite import ACCURACY

EVALUATION_BATCH = 250
WEAK_CROP = 0.6  # least area that a weak view keeps
NOVEL = "novel"  # a column that says: these labels are of classes that the model's own classifier does not know


@dataclass(frozen=True)
class FewShot:
    """The workload's options and its four methods, see :class:`fedlab.workload.Workload`."""

    base: str = Field("omniglot", description="labeled set of the server")
    targets: str = Field("usps,mnist_m,optdigits,synthdigits", description="sets of the clients, comma-separated")
    unlabeled_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of a target's images that is trained on, without labels"
    )
    mix_channels: bool = Field(
        True, description="gray sets together with color ones, repeated in three channels; false: refuse"
    )
    size: int = Field(0, ge=0, le=512, description="pixels a side of every image; 0: the base's own")
    network: Literal["conv", "resnet10", "mixer"] = Field("conv", description="conv (CPU), resnet10 (paper), mixer")
    width: int = Field(32, ge=8, multiple_of=8, description="channels of the first convolution of network=conv")
    norm: Literal["group", "batch"] = Field("group", description="group norm, or the paper's batch norm")
    objective: Literal["classification", "prototypes"] = Field(
        "classification", description="objective on the base: cross-entropy, or ProtoNet's episodes"
    )
    classifier: Literal["linear", "prototypes"] = Field(
        "linear", description="an episode's classifier: linear, trained as published, or the nearest class mean"
    )
    ways: int = Field(5, ge=2, description="classes of an episode")
    shots: str = Field("1,5,20", description="labeled images a class, one or more numbers")
    queries: int = Field(15, ge=1, description="test images a class")
    episodes: int = Field(600, ge=2, description="episodes for each number of shots; from 2, for an interval")
    min_crop_area: float = Field(0.08, gt=0, le=1, description="least area that a random crop keeps; 1: no crops")
    jitter: float = Field(0.4, ge=0, le=1, description="strength of random brightness, contrast and saturation")
    hflip: bool = Field(True, description="mirror half of the views; not for characters")
    recolor: bool = Field(False, description="random affine maps and random colors of base images")
    texture: Texture = Field("off", description="random textures of the base's images: randconv, pro_randconv")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Validate the sets: each exists, is used once, and the base has validation images."""
        names = self.domains
        if not names:
            raise ConfigError("option 'fewshot.targets' is empty; name at least one set, for example eurosat")
        for name in (self.base, *names):
            if name not in IMAGE_SETS:
                raise ConfigError(f"unknown set of images {name!r}; {suggest(name, IMAGE_SETS)}")
        if IMAGE_SETS[self.base].validation is None:
            able = [name for name, entry in IMAGE_SETS.items() if entry.validation]
            raise ConfigError(f"option 'fewshot.base': {self.base!r} can only be a target; bases are {', '.join(able)}")
        twice = [name for name in names if names.count(name) > 1 or name == self.base]
        if twice:
            raise ConfigError(f"set {twice[0]!r} appears twice among base {self.base!r} and targets {self.targets!r}")
        _ = self.shot_numbers, self.partition

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the target sets."""
        return split_names("fewshot.targets", self.targets)

    @property
    def partition(self) -> str:
        """Scheme by which clients of one target share its unlabeled images."""
        return self.data_config.partition_kind("iid", "dirichlet", "shards", "quantity")

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        return domain_suite.unused_of_domains(self.data_config, self.partition)

    @property
    def shot_numbers(self) -> tuple[int, ...]:
        """Numbers of labeled images per class.

        Raises
        ------
        ConfigError
            When ``shots`` is not a list of positive integers.
        """
        parts = split_names("fewshot.shots", self.shots)
        if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise ConfigError(
                f"option 'fewshot.shots': got {self.shots!r}; expected numbers from 1, for example 1,5,20"
            )
        return tuple(map(int, parts))

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients: one or several for each target."""
        if self.data_config.clients_per_domain == 1:
            return self.domains
        return tuple(f"{name}-{part}" for name in self.domains for part in range(self.data_config.clients_per_domain))

    @property
    def pixels(self) -> int:
        """Height and width of every image."""
        return self.size or self._read(self.base).x.shape[-1]

    def model(self) -> nn.Module:
        """Return a fresh network with ``features`` and a linear ``head`` over the base classes."""
        classes = int(self._read(self.base).y.max()) + 1
        if self.network == "mixer":
            patch = self.pixels // 8  # 64 tokens
            return Mixer(classes, patch * 8, MixerShape(patch, 128, 4, 64, 512))
        if self.network == "resnet10":
            return ResNet10(classes, self.norm)
        return ConvNet(classes, self.norm, self.width)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return images (3, size, size) in [-1, 1] as ``x``; labels as ``y`` on the server and in test data.

        Every read of the server's training images gives new random views; those of clients are unchanged, and
        :meth:`view` makes views of them.

        Raises
        ------
        DataError, ConfigError
            When files are missing, or hold too few images for the episodes that are asked for.
        """
        if partition is None:
            images = self._read(self.base, validation=split != "train")
            examples = self._examples({"x": images.x, "y": images.y})
            if split != "train":
                return examples
            viewed = ArrayDataset(examples.columns, lambda batch: self._view_of_base(to_rgb_float(batch)))
            if self.objective == "prototypes":
                viewed = EpisodeDataset(viewed.columns, viewed.transform)
            return textured(viewed, self.texture)
        domain_suite.check_partition(partition, self.clients)
        images = self.target(partition // self.data_config.clients_per_domain)
        if split == "train":
            return self._examples({"x": images.x[self._own(partition)]})
        _, labeled = image_sets.split_unlabeled(images.y, self.unlabeled_fraction)
        y = images.y[labeled]
        examples = self._examples({"x": images.x[labeled], "y": y, NOVEL: torch.ones_like(y, dtype=torch.bool)})
        check_episodes(examples.columns["y"], self.ways, max(self.shot_numbers), self.queries)
        return examples

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`; of a target, the images that are not for episodes."""
        if partition is None:
            return [image_sets.image_source(self.base, self.data_config.root_folder, len(self.data(None, "train")))]
        domain = partition // self.data_config.clients_per_domain
        parts = [min(len(rows), self._count(rows)) for rows in _unlabeled_parts(self, domain)]
        return [image_sets.image_source(self.domains[domain], self.data_config.root_folder, sum(parts))]

    def labels(self, partition: int) -> Tensor | None:
        """See :class:`fedlab.workload.SupportsHiddenLabels`."""
        y = self.target(partition // self.data_config.clients_per_domain).y
        known = y[self._own(partition)]
        if (known == image_sets.UNKNOWN).any():
            return None
        return ArrayDataset({"y": known}).subsample(self._count(known))[:]["y"]

    def _own(self, partition: int) -> Tensor:
        """Return the indices of a client's training images; they do not depend on the run's seed."""
        domain, part = divmod(partition, self.data_config.clients_per_domain)
        return _unlabeled_parts(self, domain)[part]

    def target(self, domain: int) -> LabeledImages:
        """Return all images of the target domain with this number."""
        return self._read(self.domains[domain])

    def view(self, x: Tensor, weak: bool = False) -> Tensor:
        """Return a random view of each image (batch, 3, size, size), as published; a weak one is cropped less."""
        if weak:
            return views.random_view(x, max(self.min_crop_area, WEAK_CROP), 0.0, self.hflip)
        return views.random_view(x, self.min_crop_area, self.jitter, self.hflip)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over the base classes, or ProtoNet's loss of an episode; a scalar."""
        if self.objective == "prototypes":
            return episode_loss(features_of(model)(batch["x"]), batch["y"])
        smoothing = self.data_config.label_smoothing
        return cross_entropy(model(batch["x"]), batch["y"], label_smoothing=smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy over episodes with its interval; on base images, accuracy and loss of the model's head."""
        if NOVEL not in data.columns:
            return domain_suite.accuracy_and_loss(model, data, EVALUATION_BATCH)
        metrics: dict[str, float] = {}
        for shots, accuracies in self.episode_accuracies(model, data).items():
            error = accuracies.std(correction=0) / len(accuracies) ** 0.5
            metrics |= {f"accuracy_{shots}-shot": float(accuracies.mean())}
            metrics |= {f"interval_{shots}-shot": float(1.96 * error)}
        return metrics

    @torch.no_grad()
    def episode_accuracies(self, model: nn.Module, data: ArrayDataset) -> Mapping[int, Tensor]:
        """Return the accuracy of each episode (episodes,), float64 on the CPU, by number of shots."""
        device = next(model.parameters()).device
        z, y = encode(features_of(model), data, device, EVALUATION_BATCH), data.columns["y"]
        found = {}
        for shots in self.shot_numbers:
            seed, numbers = self.data_config.seed, {"ways": self.ways, "shots": shots, "queries": self.queries}
            drawn = sample_episodes(y, **numbers, episodes=self.episodes, seed=seed)
            support, query = z[drawn.support.to(device)], z[drawn.query.to(device)]  # (episodes, n, width)
            if self.classifier == "linear":
                with seeded("heads", self.data_config.seed, shots):
                    start = linear_classifiers.init_classifiers(self.episodes, self.ways, support.shape[1], z.shape[1])
                logits = linear_classifiers.fit_linear_classifiers(
                    support, drawn.labels(drawn.support).to(device), query, start.to(device)
                )
            else:
                logits = linear_classifiers.prototype_logits(support, query, self.ways)
            right = logits.argmax(2) == drawn.labels(drawn.query).to(device)
            found[shots] = right.double().mean(1).cpu()
        return found

    def _read(self, name: str, validation: bool = False) -> LabeledImages:
        base = image_sets.load_image_set(self.base, self.data_config.root_folder)
        images = image_sets.load_image_set(
            name, self.data_config.root_folder, validation, self.size or base.x.shape[-1]
        )
        if not self.mix_channels and images.x.shape[1] != base.x.shape[1]:
            raise ConfigError(
                f"base {self.base!r} has {base.x.shape[1]} channels and target {name!r} {images.x.shape[1]}; "
                "set fewshot.mix_channels=true, which repeats gray images in three, or use sets with equal channels"
            )
        return images

    def _examples(self, columns: Batch) -> ArrayDataset:
        return ArrayDataset(columns, to_rgb_float).subsample(self._count(columns["x"]))

    def _count(self, column: Tensor) -> int:
        return self.data_config.max_examples or len(column)

    def _view_of_base(self, batch: Batch) -> Batch:
        x = batch["x"]
        return {**batch, "x": self.view(random_recolor(random_affine(x)) if self.recolor else x)}


@lru_cache(maxsize=32)
def _unlabeled_parts(workload: FewShot, domain: int) -> Sequence[Tensor]:
    """Return the rows of a target's unlabeled images (rows,) that each of its clients has, drawn once a process."""
    y, data = workload.target(domain).y, workload.data_config
    bare, _ = image_sets.split_unlabeled(y, workload.unlabeled_fraction)
    if data.clients_per_domain == 1:
        return [bare]
    kind = workload.partition
    if PARTITIONS[kind].by_label and (y[bare] == image_sets.UNKNOWN).any():
        raise ConfigError(
            f"data.partition={kind} needs labels, and {workload.domains[domain]!r} has none for the images that it is "
            "trained on; use iid or quantity"
        )
    parts = partition_indices(kind, y[bare], data.clients_per_domain, data.alpha, domain, data.min_examples)
    return [bare[rows] for rows in parts]


EPISODES = (
    ACCURACY,
    Metric("interval", unit=FRACTION, order=1, role="margin"),
    Metric("*_*-shot"),
)

SPEC = WorkloadSpec(FewShot, primary_metric="accuracy", smooths_labels=True, metrics=EPISODES)
