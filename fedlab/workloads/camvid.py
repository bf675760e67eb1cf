"""CamVid: labelled day views on the server, unlabelled drives on the clients; a class for every pixel.

A pixel is an example to a strategy: features and logits are rows, one for each cell of a grid of half the view's height
and width (``fedlab/models/fcn.py``). Labels keep the view's size: logits in training, and probabilities in testing, are
enlarged to it bilinearly. Pixels that nobody knows the class of (``IGNORE_INDEX``) count nowhere.

**Loss**: cross-entropy weighted by class, (median frequency / frequency) ** ``rare``: 1 is the balancing of SegNet's
CamVid, 0 none. Frequencies are those of the two default source drives, constants that every party knows.

**Metrics**: ``miou``, the mean over classes of intersection over union, from one confusion matrix of all test views of
a client, at 60 x 80 pixels; classes that none of its test pixels has are left out of the mean. ``loss``: mean
cross-entropy over pixels, without weights. None on data without labels.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, nll_loss

from fedlab.config.schema import DEFAULT_DATA, DataConfig
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.pixels import to_float
from fedlab.data.segmentation import augment, camvid
from fedlab.data.segmentation.camvid import CLASSES, DRIVES, FREQUENCIES, IGNORE_INDEX
from fedlab.errors import ConfigError, DataError, suggest
from fedlab.models.fcn import STRIDE, FcnNet
from fedlab.workload import WorkloadSpec

EVALUATION_BATCH = 50


@dataclass(frozen=True)
class CamVid:
    """The workload's options and its four answers, see :class:`fedlab.workload.Workload`."""

    source: str = Field("day_0006R0,day_0016E5", description="drives of the server, with labels, comma-separated")
    targets: str = Field("dusk,day_05VD", description="drives of the clients, comma-separated")
    client_labels: bool = Field(False, description="clients hold training labels, for upper bounds only")
    augment: bool = Field(True, description="random windows, mirroring and light of the source views")
    gamma: float = Field(2.0, ge=1, le=10, description="largest random exponent of the source views' light; 1: none")
    class_weight_power: float = Field(0.5, ge=0, le=1, description="how far the loss evens out classes, by frequency; 0: not")
    full_size: bool = Field(False, description="views of 120 x 160 pixels, from data.root; else 60 x 80")
    width: int = Field(48, ge=4, le=512, description="features of a pixel")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Refuse drives that do not exist or stand on both sides."""
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
                    f"the views of {name!r} stand twice among source {self.source!r} and targets {self.targets!r}; "
                    "each drive has one owner"
                )

    @property
    def sources(self) -> tuple[str, ...]:
        """The server's drives."""
        return _names(self.source)

    @property
    def drives(self) -> tuple[str, ...]:
        """The targets."""
        return _names(self.targets)

    @property
    def clients(self) -> tuple[str, ...]:
        """A client for each drive, or ``parts`` of them."""
        if self.data_config.clients_per_domain == 1:
            return self.drives
        return tuple(f"{name}-{part}" for name in self.drives for part in range(self.data_config.clients_per_domain))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        return CLASSES

    def model(self) -> nn.Module:
        """A fresh network with ``features`` and ``head``."""
        return FcnNet(len(CLASSES), self.width)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Views (3, height, width) in [-1, 1] as ``x``; labels (height, width) as ``y`` where the holder has them.

        The server's training views come in a new random view each time they are read, if ``augment`` is on; it tests on
        day views of another time. Clients that share a drive train on stretches of it and test on the same views.
        """
        if partition is None:
            if split != "train":
                return self._read(camvid.HELD_OUT, "all")
            drives = [self._read(name, "all") for name in self.sources]
            columns = {name: torch.cat([drive.columns[name] for drive in drives]) for name in ("x", "y")}
            return ArrayDataset(columns, self._augmented if self.augment else drives[0].transform)
        if not 0 <= partition < len(self.clients):
            raise DataError(
                f"there is no partition {partition}; this workload has {len(self.clients)}: {', '.join(self.clients)}"
            )
        drive, part = divmod(partition, self.data_config.clients_per_domain)
        examples = self._read(self.drives[drive], split, with_labels=self.client_labels)
        return self._time_slice(examples, part) if split == "train" else examples

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy, weighted by class, over the pixels that have one; 0 where none has.

        ``y`` has a class for each pixel (batch, height, width), or one for each row that the model gives.
        """
        rows, labels = model(batch["x"]), batch["y"]
        scores = rows if labels.numel() == len(rows) else upsample_logits(rows, labels)
        labels, weights = labels.view_as(scores[:, 0]), class_weights(self.class_weight_power).to(scores)
        total = torch.where(labels == IGNORE_INDEX, 0.0, weights[labels.clamp_min(0)]).sum()
        summed = cross_entropy(scores, labels, weights, ignore_index=IGNORE_INDEX, reduction="sum")
        return summed / total.clamp_min(weights.min())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Mean IoU and cross-entropy of a model that maps ``x`` to rows of logits; nothing without labels."""
        if "y" not in data.columns:
            return {}
        model.eval()
        device = next(model.parameters()).device
        confusion, loss = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64), 0.0
        for batch in data.batches(EVALUATION_BATCH):
            labels = batch["y"].to(device)
            p = upsample_logits(model(batch["x"].to(device)).softmax(1), labels)  # (batch, classes, height, width)
            confusion += confusion_matrix(p.argmax(1), labels)
            loss += float(nll_loss(p.clamp_min(1e-12).log(), labels, ignore_index=IGNORE_INDEX, reduction="sum"))
        score = iou(confusion)
        if not score.present.any():
            raise DataError("no test pixel has a class; mean IoU needs one at least")
        return {
            "miou": float(score.iou[score.present].mean()),
            "loss": loss / int(confusion.sum()),
        }

    def _read(self, drive: str, split: str, with_labels: bool = False) -> ArrayDataset:
        root = Path(self.data_config.root) if self.data_config.root else None
        return camvid.load_drive(drive, split, root, reduce=1 if self.full_size else 2, with_labels=with_labels)

    def _augmented(self, batch: Batch) -> Batch:
        x, y = augment.random_resized_crop(to_float(batch)["x"], batch["y"])
        return {**batch, "x": augment.random_gamma(x, self.gamma), "y": y}

    def _time_slice(self, examples: ArrayDataset, part: int) -> ArrayDataset:
        """One of ``parts`` stretches of time, as equal as they can be."""
        count = len(examples)
        if self.data_config.clients_per_domain > count // 2:
            raise ConfigError(
                f"option 'data.clients_per_domain': {count} views cannot be split over {self.data_config.clients_per_domain} clients of at least 2 each; "
                f"ask for at most {count // 2}"
            )
        rows = slice(part * count // self.data_config.clients_per_domain, (part + 1) * count // self.data_config.clients_per_domain)
        return ArrayDataset({name: column[rows] for name, column in examples.columns.items()}, examples.transform)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def class_weights(power: float) -> Tensor:
    """(median frequency / frequency) ** power of each class (classes,)."""
    frequency = torch.tensor(FREQUENCIES)
    return (frequency.median() / frequency) ** power


def upsample_logits(rows: Tensor, labels: Tensor) -> Tensor:
    """Rows of scores (batch * h * w, classes) as maps of the labels' size (batch, classes, height, width).

    Raises
    ------
    DataError
        When there are not as many rows as the grid of such labels has cells.
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


def confusion_matrix(predicted: Tensor, labels: Tensor) -> Tensor:
    """Counts (classes, classes) on the CPU, row the label and column the prediction, of pixels that have a label."""
    known = labels != IGNORE_INDEX
    pairs = labels[known] * len(CLASSES) + predicted[known]
    return torch.bincount(pairs.cpu(), minlength=len(CLASSES) ** 2).view(len(CLASSES), len(CLASSES))


class ClassIoU(NamedTuple):
    """Intersection over union of each class (classes,), and which classes the labels hold."""

    iou: Tensor
    present: Tensor


def iou(confusion: Tensor) -> ClassIoU:
    """From counts (classes, classes), row the label and column the prediction; 0 for a class that nobody has."""
    hits, labelled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
    return ClassIoU(hits / (labelled + predicted - hits).clamp_min(1), labelled > 0)


SPEC = WorkloadSpec(CamVid, oracle_overrides={"camvid.client_labels": True}, primary_metric="miou")
