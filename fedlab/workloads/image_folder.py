"""Photographs of one's own: labeled images on the server, folders of any images on the clients.

``data.root`` names a folder with ``source/CLASS/*.jpg`` and, for a simulation, ``targets/NAME/``; a deployed client
gives its own with ``fedlab join --data FOLDER``. Without such a folder the domains are those of PACS. How folders are
read is in ``fedlab/data/images/photo_domains.py``, how files are in ``fedlab/data/images/photo_files.py``.

A pre-trained backbone (``network``) is trained with the rest (``freeze=none``), partly, or not at all
(``freeze=backbone``): then each machine computes its images' features once, and only a small head crosses the wire.

**Departures** from published results on PACS: (1) EfficientNet-Lite0 instead of ResNet-18; (2) images of 64 pixels
(32 in the package) enlarged to ``size``, instead of 224; (3) the split of ``fedlab/data/images/pacs.py``.

**Metrics**: ``accuracy``, the fraction of test images whose largest logit is the label's; ``loss``, mean cross-entropy.
None on images without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.config.sections import split_names
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.images import photo_domains, views
from fedlab.data.images.domain_suites import suite_source
from fedlab.data.images.image_stores import lazy_dataset, load_files
from fedlab.data.images.photo_domains import Part
from fedlab.data.images.photo_layout import FOLDERS, TARGETS, Layout
from fedlab.data.images.texture import Texture, randomize_texture
from fedlab.data.partitioners import PARTITIONS
from fedlab.data.pixels import bytes_to_float, to_float
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, DataError
from fedlab.models.backbones import BackboneClassifier, split_stages
from fedlab.models.convnet import ConvNet
from fedlab.workload import WorkloadSpec
from fedlab.workloads import domain_suite
from fedlab.workloads.backbones import check_backbone, load_backbone, stages_of
from fedlab.workloads.domain_suite import ACCURACY, ClientSpec
from fedlab.workloads.frozen_features import FrozenStages

FROM_SCRATCH = "conv"
WIDTH = 16  # channels of its first convolution
SEPARATOR = "/"  # between names of classes: no folder's name holds it
EVALUATION_BATCH = 100
KINDS = (
    "iid",
    "quantity",
    "dirichlet",
    "shards",
    "balanced_dirichlet",
)  # of a domain; from the third on by class


@dataclass(frozen=True)
class ImageFolder:
    """The workload's options and its methods, see :class:`fedlab.workload.Workload`."""

    domains: Literal["auto", "folders", "pacs"] = Field(
        "auto", description="folders of data.root, or domains of PACS; auto: folders where data.root holds the source's"
    )
    source: str = Field("", description="domain of the server; empty: the folder source, or photo of PACS")
    targets: str = Field(
        "", description="clients, comma-separated; empty: the sub-folders of targets, or PACS's other domains"
    )
    class_names: str = Field("", description="the classes, with / between them; empty: the source's sub-folders")
    client_labels: bool = Field(False, description="clients have training labels, for upper bounds only")
    holdout: float = Field(0.1, ge=0, lt=1, description="fraction of a source folder that is tested on, not trained on")
    network: str = Field(
        FROM_SCRATCH,
        description="conv (from scratch), or pre-trained: efficientnet_lite0, torchvision/NAME, timm/NAME",
    )
    weights: str = Field("", description="file of a pre-trained network's weights; empty: the usual place")
    freeze: Literal["none", "stages", "backbone"] = Field(
        "none", description="what is not trained of a pre-trained network: nothing, its first stages, all but the head"
    )
    trained_stages: int = Field(2, ge=1, description="last stages that are trained with freeze=stages")
    bottleneck: int = Field(
        0, ge=0, le=4096, description="width of a trained layer between a pre-trained network and the head; 0: none"
    )
    size: int = Field(64, ge=64, le=224, description="pixels a side")
    augment: bool = Field(True, description="random crops, flips and colors of the source, some images in gray")
    texture: Texture = Field("off", description="random textures of the source's views: randconv, pro_randconv")
    views: int = Field(0, ge=0, le=64, description="random views of each source image for frozen stages, computed once")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Validate the options, and fill in those that folders decide, so that clients get them with the others."""
        if self.network != FROM_SCRATCH:
            check_backbone(self.network)
        elif self.freeze != "none":
            raise ConfigError(
                f"image_folder.freeze={self.freeze} needs a pre-trained network, and network={self.network} is trained "
                "from scratch; set image_folder.network=efficientnet_lite0, or image_folder.freeze=none"
            )
        elif self.bottleneck:
            raise ConfigError(
                f"image_folder.bottleneck={self.bottleneck} is a layer above a pre-trained network, and network="
                f"{self.network} is trained from scratch; set image_folder.network=efficientnet_lite0, or "
                "image_folder.bottleneck=0"
            )
        found = Layout(self.domains, self.source, self._targets, self.classes).resolved(self._root)
        filled = {
            "domains": found.kind,
            "source": found.source,
            "targets": ",".join(found.targets),
            "class_names": SEPARATOR.join(found.classes),
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        domain_suite.check_unique(self.source, self._targets, self.clients)
        _ = self.partition

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(self.class_names.split(SEPARATOR)) if self.class_names else ()

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients: one for each target, or each part of a target."""
        return domain_suite.client_names(self._client_specs)

    @property
    def partition(self) -> str:
        """Scheme by which a target is divided among clients."""
        return self.data_config.partition_kind(*KINDS)

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        return domain_suite.unused_of_domains(self.data_config, self.partition)

    def model(self) -> nn.Module:
        """Return a network with ``features`` and a fresh linear ``head``; what is frozen is no part of it.

        Raises
        ------
        ConfigError
            When the weights of a pre-trained network are not on this machine.
        """
        if self.network == FROM_SCRATCH:
            return ConvNet(len(self.classes), "batch", WIDTH)
        backbone = load_backbone(self.network, self.weights)
        stages = stages_of(backbone, self._trained or 0, self.network)
        _, rest = split_stages(stages, len(stages) if self._trained is None else self._trained)
        return BackboneClassifier(deepcopy(rest), backbone.width, len(self.classes), self.bottleneck)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return images (3, size, size) in [-1, 1] as ``x``, or their frozen features; and ``y`` where there is one.

        Raises
        ------
        DataError
            When there is no such partition, or no image.
        """
        domain_suite.check_partition(partition, self.clients)
        if partition is None:
            return self._dataset(self._source_part(split), varied=split == "train")
        return self._client_data(partition, split, self.client_labels)

    def read_domain(self, domain: str, split: str, with_labels: bool) -> ArrayDataset:
        """See :class:`fedlab.workloads.domain_suite.DividesDomains`."""
        return self._dataset(self._target_part(domain, split, with_labels))

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        domain = self.source if partition is None else self._client_specs[partition].domain
        if partition is None:
            part, folder = self._source_part("train"), self._root / domain if self._root else None
        else:
            part, folder = self._target_part(domain, "train", False), self._folder(domain)
        examples = len(part.subsample(self.data_config.max_examples).rows)
        if folder is None or (self.domains != FOLDERS and not self.data_config.client_folder):
            return [suite_source(photo_domains.PACS_PHOTOS, domain, self._root, examples)]
        return [DataSource(domain, examples, str(folder))]

    def labels(self, partition: int) -> Tensor | None:
        """See :class:`fedlab.workload.SupportsHiddenLabels`."""
        if not self._knows_labels(self._client_specs[partition].domain):
            return None
        return self._client_data(partition, "train", True).columns["y"]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        smoothing = self.data_config.label_smoothing
        return cross_entropy(model(batch["x"]), batch["y"], label_smoothing=smoothing)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy and cross-entropy; nothing without labels."""
        return domain_suite.accuracy_and_loss(model, data, EVALUATION_BATCH)

    def images(self, paths: Sequence[Path]) -> ArrayDataset:
        """Return image files as ``x``, read like a client's own, or their frozen features.

        Raises
        ------
        DataError
            With the name of a file that is not an image.
        """
        x = load_files(paths, self.size)
        frozen = self._frozen
        return ArrayDataset({"x": x}, to_float) if frozen is None else ArrayDataset({"x": frozen(bytes_to_float(x))})

    @property
    def _root(self) -> Path | None:
        return Path(self.data_config.root).expanduser() if self.data_config.root else None

    @property
    def _targets(self) -> tuple[str, ...]:
        return split_names("image_folder.targets", self.targets)

    @property
    def _client_specs(self) -> tuple[ClientSpec, ...]:
        return domain_suite.client_specs(self._targets, self.data_config.clients_per_domain)

    @property
    def _trained(self) -> int | None:
        """Return the number of stages that are trained; None: no stage is frozen."""
        return {"none": None, "stages": self.trained_stages, "backbone": 0}[self.freeze]

    @property
    def _frozen(self) -> FrozenStages | None:
        if self._trained is None:
            return None
        return FrozenStages(self.network, self.weights, self._trained, self.data_config.device)

    def _source_part(self, split: str) -> Part:
        root = self._root
        if self.domains != FOLDERS:
            return photo_domains.pacs_part(self.source, split, True, root, self.size)
        if root is None:
            raise DataError("the source's images are on the server's machine")
        return photo_domains.source_part(root / self.source, self.classes, split, self.holdout, self.size)

    def _target_part(self, domain: str, split: str, with_labels: bool) -> Part:
        folder = self._folder(domain)
        if folder is None:
            return photo_domains.pacs_part(domain, split, with_labels, self._root, self.size)
        return photo_domains.client_part(folder, self.classes, split, with_labels, self.size)

    def _folder(self, domain: str) -> Path | None:
        """Return the folder of a client's images; None for a domain of PACS.

        Raises
        ------
        DataError
            When the client should bring its own images and there are none.
        """
        if self.data_config.client_folder:
            return Path(self.data_config.client_folder).expanduser()
        if self.domains != FOLDERS:
            return None
        folder = (self._root or Path("DATA_ROOT")) / TARGETS / domain
        if self._root is None or not folder.is_dir():
            raise DataError(
                f"client {domain!r} brings its own images, and there are none here: join it with `fedlab join "
                f"HOST:PORT --domain {domain} --data FOLDER`, or to simulate it put images into {folder}"
            )
        return folder

    def _knows_labels(self, domain: str) -> bool:
        """Return True if every training image of a domain has a class; none does where a folder has no class's."""
        if self._folder(domain) is None:
            return True
        try:
            labeled = self._target_part(domain, "train", True)
        except DataError:
            return False
        return len(labeled.rows) == len(self._target_part(domain, "train", False).rows)

    def _client_data(self, partition: int, split: str, with_labels: bool) -> ArrayDataset:
        client = self._client_specs[partition]
        if self.data_config.client_folder:
            client = ClientSpec(client.name, client.domain)  # all of the folder is its own
        elif client.parts > 1 and PARTITIONS[self.partition].by_label and not self._knows_labels(client.domain):
            raise ConfigError(
                f"data.partition={self.partition} needs the class of every training image, and some of "
                f"{client.domain!r} have none; use iid or quantity"
            )
        return domain_suite.client_data(self, client, split, with_labels)

    def _dataset(self, part: Part, varied: bool = False) -> ArrayDataset:
        """Return the examples of a part; a varied one gives new random views each time it is read."""
        part = part.subsample(self.data_config.max_examples)
        columns = {} if part.labels is None else {"y": part.labels}
        changes = self.augment or self.texture != "off"
        frozen = self._frozen
        if frozen is None:
            return lazy_dataset(part.store, part.rows, columns, self._view if varied and changes else None)
        views = self.views if varied and changes else 0
        x = frozen.features(part.store, self._view, views, f"{self.augment} {self.texture}" if views else "")
        whole = len(part.rows) == len(x)  # rows are in order then, and x stays on disk
        return ArrayDataset({"x": x if whole else x[part.rows], **columns}, _any_view if views else _copied)

    def _view(self, x: Tensor) -> Tensor:
        """Return a random view of each image of the source (batch, 3, size, size)."""
        return randomize_texture(self.texture, views.photo_view(x) if self.augment else x)


def _any_view(batch: Batch) -> Batch:
    """Return one of the views of each example, features (batch, views, ...), at random."""
    x = batch["x"]
    chosen = torch.randint(x.shape[1], (len(x),))
    return {**_copied(batch), "x": x[torch.arange(len(x)), chosen]}


def _copied(batch: Batch) -> Batch:
    """Return a batch that shares no memory with the stored columns, of which it may be a slice."""
    return {name: column.clone() for name, column in batch.items()}


SPEC = WorkloadSpec(
    ImageFolder,
    oracle_overrides={"image_folder.client_labels": True},
    primary_metric="accuracy",
    smooths_labels=True,
    metrics=(ACCURACY,),
)
