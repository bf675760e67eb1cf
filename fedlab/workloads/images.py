"""Images with classes: clients hold label-skewed shards of one set, with labels or without.

With ``client_labels`` any supervised strategy trains on the shards, and the server has the whole training part: for
``source_only``, which is then centralized training, and for pre-training. Without, the server has ``server_fraction``
of it with labels, and clients share the rest without (labels at the server: Jeong et al., ICLR 2021). Sets are those of
``fedlab.data.images.image_sets`` that have test images. ``cifar10`` is not part of the package: ``FEDLAB_DATA`` names a
folder that has it.

**Metrics**: ``accuracy``, the fraction of test images whose largest logit is the label's; ``loss``, mean cross-entropy.
Every client tests on an equal random part of the test images, however training images are divided; with fewer than ten
images for each, clients share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.images import image_sets, views
from fedlab.data.images.cutmix import CUTMIX_NUMBERS, PASTED_LABEL, PASTED_SHARE, cutmix, pasted
from fedlab.data.images.image_sets import IMAGE_SETS
from fedlab.data.images.texture import Texture, textured
from fedlab.data.images.trivial_augment import NUMBERS, changed, draw_changes, trivial_augment
from fedlab.data.pixels import to_rgb_float
from fedlab.data.random_batches import RandomTransform
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, suggest
from fedlab.losses.mixed_labels import mixed_cross_entropy
from fedlab.models.convnet import ConvNet
from fedlab.models.mixer import SHAPES, SMALL, Mixer, check_patch_size
from fedlab.models.mlp import MLP
from fedlab.models.resnet_cifar import resnet18, resnet20
from fedlab.models.vit import ViT
from fedlab.workload import WorkloadSpec
from fedlab.workloads import domain_suite, shards
from fedlab.workloads.domain_suite import ACCURACY, KINDS

MIXERS = {**SMALL, **SHAPES}


@dataclass(frozen=True)
class Images:
    """The workload's options and its four methods, see :class:`fedlab.workload.Workload`."""

    test_partition: ClassVar[str] = "iid"  # with 4 images a class no even mix could be had

    source: str = Field("omniglot", description="a set with a part to test on: omniglot, cifar10, tiny_imagenet")
    client_labels: bool = Field(False, description="clients have labels, and the server a copy of everything")
    server_fraction: float = Field(
        0.1, gt=0, lt=1, description="fraction of the training images that the server has, with client_labels=false"
    )
    network: Literal["mixer", "conv", "vit", "mlp", "resnet20", "resnet18"] = Field(
        "mixer",
        description="an MLP-Mixer, a small convolutional network, torchvision's vision transformer, a perceptron, or a "
        "residual network; convolutions with group norm",
    )
    width: int = Field(
        32, ge=8, multiple_of=8, description="channels of the first convolution with network=conv; a multiple of 8"
    )
    hidden: int = Field(200, ge=1, description="units of each of the two hidden layers with network=mlp")
    mixer: Literal["tiny", "small", "cifar", "S/32", "S/16", "B/32", "B/16", "L/32", "L/16", "H/14"] = Field(
        "tiny", description="shape of network=mixer: three for 32 pixels, and the paper's, which are for 224"
    )
    size: int = Field(0, ge=0, le=512, description="pixels a side, resized; 0: the set's own")
    min_crop_area: float = Field(
        0.6, gt=0, le=1, description="least area that a random crop of a training image keeps; 1: none"
    )
    crop_padding: int = Field(
        0,
        ge=0,
        le=512,
        description="pixels of a black border in which a training image is moved at random; 0: none",
    )
    jitter: float = Field(0.0, ge=0, le=1, description="strength of random brightness, contrast and saturation")
    hflip: bool = Field(False, description="mirror half of the training images; not for characters")
    augment: Literal["off", "trivial"] = Field(
        "off", description="trivial: a random change of each training image, of a random strength (TrivialAugment)"
    )
    cutmix: float = Field(
        0.0, ge=0, le=1, description="probability that a labeled training image gets a rectangle of another (CutMix)"
    )
    texture: Texture = Field("off", description="random textures of the source's images: randconv, pro_randconv")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Validate the set, which needs test images, and the patches, which must fit a given size."""
        able = [name for name, entry in IMAGE_SETS.items() if entry.validation]
        if self.source not in able:
            raise ConfigError(
                f"images.source={self.source} is not a set with test images; {suggest(self.source, able)}"
            )
        if self.size and self.network == "mixer":
            check_patch_size(self.size, MIXERS[self.mixer])

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients, one for each shard."""
        return shards.numbered_names("shard", self.data_config.num_shards)

    @property
    def partition(self) -> str:
        """Scheme by which the set is divided among clients."""
        return self.data_config.partition_kind(*KINDS)

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        return shards.unused_of_shards(self.partition)

    def model(self) -> nn.Module:
        """Return a fresh network with ``features`` and ``head``."""
        images = self._read("train")
        return NETWORKS[self.network](self, int(images.y.max()) + 1, images.x.shape[-1])

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return images (3, size, size) in [-1, 1] as ``x`` and, if their owner has labels, ``y``.

        Every read of training images gives new random views.

        Raises
        ------
        DataError, ConfigError
            When files are missing, there is no such partition, or a shard gets too few images.
        """
        domain_suite.check_partition(partition, self.clients)
        if partition is None:
            examples = self._examples(split, True)
            return textured(examples, self.texture) if split == "train" else examples
        shard = shards.shard(self, partition, split)
        return shard.without("y") if split == "train" and not self.client_labels else shard

    def pool(self, split: str) -> ArrayDataset:
        """Return all images that clients share, with labels."""
        return self._examples(split, False)

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        there = len(self._read("train").y)
        examples = min(there, self.data_config.max_examples or there)
        return [image_sets.image_source(self.source, self.data_config.root_folder, examples)]

    def labels(self, partition: int) -> Tensor:
        """See :class:`fedlab.workload.SupportsHiddenLabels`."""
        return shards.shard_labels(self, partition)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar; of images that CutMix has mixed, with both labels."""
        smoothing, logits, y = self.data_config.label_smoothing, model(batch["x"]), batch["y"]
        if PASTED_SHARE in batch:
            return mixed_cross_entropy(logits, y, batch[PASTED_LABEL], batch[PASTED_SHARE], smoothing)
        return cross_entropy(logits, y, label_smoothing=smoothing)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy and cross-entropy; nothing without labels."""
        return domain_suite.accuracy_and_loss(model, data)

    def _read(self, split: str) -> image_sets.LabeledImages:
        return image_sets.load_image_set(self.source, self.data_config.root_folder, split != "train", self.size)

    def _examples(self, split: str, servers: bool) -> ArrayDataset:
        """Return all examples of the server, or all that clients share."""
        images = self._read(split)
        transform = self._views(images.x.shape[-1]) if split == "train" else to_rgb_float
        examples = ArrayDataset({"x": images.x, "y": images.y}, transform)
        if split == "train" and not self.client_labels:
            own, rest = image_sets.split_unlabeled(images.y, self.server_fraction)  # independent of the run's seed
            examples = examples.select(own if servers else rest)
        return examples.subsample(self.data_config.max_examples or len(examples))

    def _views(self, size: int) -> Callable[[Batch], Batch]:
        """Return the random views of training images of ``size`` pixels a side: padding, change, crop, mirror, CutMix.

        In two parts but for color jitter, whose order of changes is drawn for each batch.
        """
        if self.jitter:
            return self._jittered

        def draw(count: int, generator: torch.Generator | None, fixed: bool) -> Batch:
            drawn: dict[str, Tensor] = {}
            if self.crop_padding:
                drawn["corner"] = views.draw_corners(count, self.crop_padding, generator)
            if self.augment == "trivial":
                drawn |= draw_changes(count, size, generator, fixed)
            if self.min_crop_area < 1:
                drawn |= views.sample_boxes(count, size, self.min_crop_area, generator)._asdict()
            if self.hflip:
                drawn["mirrored"] = views.draw_mirrored(count, generator)
            if self.cutmix:
                drawn["cutmix"] = torch.rand(CUTMIX_NUMBERS, count, generator=generator)
            return drawn

        def apply(batch: Batch, drawn: Batch) -> Batch:
            batch = to_rgb_float(batch)
            x = batch["x"]
            if self.crop_padding:
                x = views.crop_padded(x, drawn["corner"], self.crop_padding)
            if self.augment == "trivial":
                x = changed(x, **{name: drawn[name] for name in NUMBERS})
            if self.min_crop_area < 1:
                x = views.crop(x, views.Boxes(*(drawn[name] for name in views.Boxes._fields)))
            if self.hflip:
                x = views.flip(x, drawn["mirrored"])
            batch = {**batch, "x": x}
            return pasted(batch, drawn["cutmix"], self.cutmix) if self.cutmix and "y" in batch else batch

        return RandomTransform(draw, apply)

    def _jittered(self, batch: Batch) -> Batch:
        batch = to_rgb_float(batch)
        x = views.padded_crop(batch["x"], self.crop_padding) if self.crop_padding else batch["x"]
        x = trivial_augment(x) if self.augment == "trivial" else x
        batch = {**batch, "x": views.random_view(x, self.min_crop_area, self.jitter, self.hflip)}
        return cutmix(batch, self.cutmix) if self.cutmix and "y" in batch else batch


NETWORKS: Mapping[str, Callable[[Images, int, int], nn.Module]] = {
    "mixer": lambda options, classes, size: Mixer(classes, size, MIXERS[options.mixer]),
    "conv": lambda options, classes, size: ConvNet(classes, "group", options.width),
    "vit": lambda options, classes, size: ViT(classes, size),
    "mlp": lambda options, classes, size: MLP(classes, 3 * size * size, (options.hidden,) * 2),
    "resnet20": lambda options, classes, size: resnet20(classes),
    "resnet18": lambda options, classes, size: resnet18(classes),
}


SPEC = WorkloadSpec(
    Images,
    oracle_overrides={"images.client_labels": True},
    primary_metric="accuracy",
    smooths_labels=True,
    metrics=(ACCURACY,),
)
