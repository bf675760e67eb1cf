"""CamVid: labeled day views on the server, unlabeled drives on the clients; a class for every pixel.

Features and logits are rows, one for each cell of a grid of half the view's height and width
(``fedlab/models/fcn.py``), so that strategies treat a cell as an example. Labels have the view's size: logits in
training, and probabilities in evaluation, are upsampled to it bilinearly. Pixels without a class (``IGNORE_INDEX``) are
ignored.

**Loss**: cross-entropy weighted by class, (median frequency / frequency) ** ``class_weight_power``: 1 is the balancing
of SegNet's CamVid, 0 none. Frequencies are those of the two default source drives, constants that every party knows.

**Metrics**: ``miou``, the mean over classes of intersection over union, from one confusion matrix of all test views of
a client, at 60 x 80 pixels; classes that none of its test pixels has are excluded from the mean. ``loss``: mean
cross-entropy over pixels, without weights. None on data without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, nll_loss

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.config.sections import split_names
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.images.texture import Texture, textured
from fedlab.data.pixels import to_float
from fedlab.data.segmentation import augment, camvid
from fedlab.data.segmentation.camvid import CLASSES, DRIVES, FREQUENCIES, IGNORE_INDEX
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, DataError, plural, suggest
from fedlab.metrics import FRACTION, Metric
from fedlab.models.fcn import STRIDE, FcnNet
from fedlab.workload import WorkloadSpec
from fedlab.workloads import domain_suite

EVALUATION_BATCH = 50


@dataclass(frozen=True)
class CamVid:
    """The workload's options and its four methods, see :class:`fedlab.workload.Workload`."""

    source: str = Field("day_0006R0,day_0016E5", description="drives of the server, with labels, comma-separated")
    targets: str = Field("dusk,day_05VD", description="drives of the clients, comma-separated")
    client_labels: bool = Field(False, description="clients have training labels, for upper bounds only")
    augment: bool = Field(True, description="random windows, mirroring and light of the source views")
    gamma: float = Field(2.0, ge=1, le=10, description="largest random exponent of the source views' light; 1: none")
    class_weight_power: float = Field(
        0.5, ge=0, le=1, description="exponent of the classes' weights by inverse frequency; 0: no weights"
    )
    texture: Texture = Field("off", description="random textures of the source's images: randconv, pro_randconv")
    full_size: bool = Field(False, description="views of 120 x 160 pixels, from data.root; else 60 x 80")
    width: int = Field(48, ge=4, le=512, description="features of a pixel")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Validate the drives: each exists and has one owner."""
        for option, text, names in (("source", self.source, self.sources), ("targets", self.targets, self.drives)):
            if not names:
                raise ConfigError(f"option 'camvid.{option}' is {text!r}; name at least one drive, for example dusk")
            for name in names:
                if name not in DRIVES:
                    raise ConfigError(f"unknown drive {name!r} in option 'camvid.{option}'; {suggest(name, DRIVES)}")
        places = [DRIVES[name].pieces for name in (*self.sources, *self.drives)]
        for name in (*self.sources, *self.drives):
            if places.count(DRIVES[name].pieces) > 1:
                raise ConfigError(
                    f"the views of {name!r} appear twice among source {self.source!r} and targets {self.targets!r}; "
                    "each drive has one owner"
                )

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        return frozenset(
            {"data.partition", "data.alpha", "data.min_examples", "data.test_classes", "data.max_examples"}
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """Drives of the server."""
        return split_names("camvid.source", self.source)

    @property
    def drives(self) -> tuple[str, ...]:
        """Drives of the clients."""
        return split_names("camvid.targets", self.targets)

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients: one or several for each drive."""
        if self.data_config.clients_per_domain == 1:
            return self.drives
        return tuple(f"{name}-{part}" for name in self.drives for part in range(self.data_config.clients_per_domain))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return CLASSES

    def model(self) -> nn.Module:
        """Return a fresh network with ``features`` and ``head``."""
        return FcnNet(len(CLASSES), self.width)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return views (3, height, width) in [-1, 1] as ``x`` and, if their owner has labels, ``y`` (height, width).

        With ``augment`` every read of the server's training views gives new random crops and light; it tests on day
        views of another time. Clients that share a drive train on different time slices of it and test on the same
        views.

        Raises
        ------
        DataError, ConfigError
            When there is no such partition, data is missing, or a drive has too few views for its clients.
        """
        if partition is None:
            if split != "train":
                return self._read(camvid.HELD_OUT, "all")
            drives = [self._read(name, "all") for name in self.sources]
            columns = {name: torch.cat([drive.columns[name] for drive in drives]) for name in ("x", "y")}
            viewed = ArrayDataset(columns, self._augmented if self.augment else drives[0].transform)
            return textured(viewed, self.texture)
        domain_suite.check_partition(partition, self.clients)
        drive, part = divmod(partition, self.data_config.clients_per_domain)
        examples = self._read(self.drives[drive], split, with_labels=self.client_labels)
        return self._time_slice(examples, part) if split == "train" else examples

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        if partition is None:
            drives, split = self.sources, "all"
        else:
            drives, split = (self.drives[partition // self.data_config.clients_per_domain],), "train"
        return [
            camvid.drive_source(name, self.data_config.root_folder, len(self._read(name, split))) for name in drives
        ]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the class-weighted mean cross-entropy over labeled pixels, a scalar; 0 if there are none.

        ``y`` has a class for each pixel (batch, height, width), or one for each row of the model's logits.
        """
        rows, labels = model(batch["x"]), batch["y"]
        scores = rows if labels.numel() == len(rows) else by_pixel(upsample_logits(rows, labels))
        labels, weights = labels.flatten(), class_weights(self.class_weight_power, scores.device).to(scores)
        total = torch.where(labels == IGNORE_INDEX, 0.0, weights[labels.clamp_min(0)]).sum()
        smoothing = self.data_config.label_smoothing
        summed = cross_entropy(scores, labels, weights, None, IGNORE_INDEX, None, "sum", smoothing)
        return summed / total.clamp_min(weights.min())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return mean IoU and cross-entropy of a model that maps ``x`` to rows of logits; nothing without labels.

        Raises
        ------
        DataError
            When no test pixel has a class.
        """
        if "y" not in data.columns:
            return {}
        model.eval()
        device = next(model.parameters()).device
        confusion, loss = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64), 0.0
        for batch in data.batches(EVALUATION_BATCH):
            labels = batch["y"].to(device)
            p = upsample_logits(model(batch["x"].to(device)).softmax(1), labels)  # (batch, classes, height, width)
            confusion += confusion_matrix(p.argmax(1), labels)
            log_p = by_pixel(p.clamp_min(1e-12).log())
            loss += float(nll_loss(log_p, labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"))
        score = iou(confusion)
        if not score.present.any():
            raise DataError("no test pixel has a class; mean IoU needs one at least")
        return {
            "miou": float(score.iou[score.present].mean()),
            "loss": loss / int(confusion.sum()),
        }

    def _read(self, drive: str, split: str, with_labels: bool = False) -> ArrayDataset:
        return camvid.load_drive(
            drive, split, self.data_config.root_folder, reduce=1 if self.full_size else 2, with_labels=with_labels
        )

    def _augmented(self, batch: Batch) -> Batch:
        x, y = augment.random_resized_crop(to_float(batch)["x"], batch["y"])
        return {**batch, "x": augment.random_gamma(x, self.gamma), "y": y}

    def _time_slice(self, examples: ArrayDataset, part: int) -> ArrayDataset:
        """Return the views of one client: one of several time slices of nearly equal length."""
        count, parts = len(examples), self.data_config.clients_per_domain
        if parts > count // 2:
            raise ConfigError(
                f"option 'data.clients_per_domain': {plural(count, 'view')} cannot be split over "
                f"{plural(parts, 'client')} of at least 2 "
                f"each; ask for at most {count // 2}"
            )
        rows = slice(part * count // parts, (part + 1) * count // parts)
        return ArrayDataset({name: column[rows] for name, column in examples.columns.items()}, examples.transform)


@lru_cache(maxsize=8)
def class_weights(power: float, device: torch.device | None = None) -> Tensor:
    """Return (median frequency / frequency) ** power of each class (classes,)."""
    frequency = torch.tensor(FREQUENCIES)
    weights: Tensor = (frequency.median() / frequency) ** power
    return weights.to(device)


def upsample_logits(rows: Tensor, labels: Tensor) -> Tensor:
    """Upsample rows of scores (batch * h * w, classes) to the labels' size (batch, classes, height, width).

    Raises
    ------
    DataError
        When the number of rows does not match the grid of such labels.
    """
    batch, height, width = labels.shape
    h, w = height // STRIDE, width // STRIDE
    if len(rows) != batch * h * w:
        raise DataError(
            f"{len(rows)} rows of scores for {batch} views of {height} x {width} pixels, expected {batch * h * w}: "
            f"one for each {STRIDE} x {STRIDE} pixels"
        )
    maps = rows.view(batch, h, w, -1).permute(0, 3, 1, 2)
    return interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def by_pixel(maps: Tensor) -> Tensor:
    """Return maps (batch, classes, height, width) as rows (pixels, classes).

    On a GPU the cross-entropy of images has no deterministic kernel, that of rows has one.
    """
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def confusion_matrix(predicted: Tensor, labels: Tensor) -> Tensor:
    """Return counts (classes, classes) of labeled pixels on the CPU: row is the label, column the prediction."""
    known = labels != IGNORE_INDEX
    pairs = labels[known] * len(CLASSES) + predicted[known]
    return torch.bincount(pairs.cpu(), minlength=len(CLASSES) ** 2).view(len(CLASSES), len(CLASSES))


class ClassIoU(NamedTuple):
    """Intersection over union of each class (classes,), and a mask of the classes among the labels (classes,)."""

    iou: Tensor
    present: Tensor


def iou(confusion: Tensor) -> ClassIoU:
    """Return the IoU of each class from counts (classes, classes), row the label and column the prediction."""
    hits, labeled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    return ClassIoU(hits / (labeled + predicted - hits).clamp_min(1), labeled > 0)


SPEC = WorkloadSpec(
    CamVid,
    oracle_overrides={"camvid.client_labels": True},
    primary_metric="miou",
    smooths_labels=True,
    metrics=(Metric("miou", "mean IoU", FRACTION, higher_is_better=True, confusion="mean_iou"),),
)
