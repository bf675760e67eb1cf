"""PACS: labeled images of one style on the server, unlabeled ones of the other three styles on the clients.

**Source and departures**: ``fedlab/data/images/pacs.py``; and a small network trained from scratch, while published
results start from a network trained on ImageNet and are much higher.

**Metrics**: ``accuracy``, the fraction of test images whose largest logit is the label's; ``loss``, mean cross-entropy.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.data.dataset import ArrayDataset
from fedlab.data.digits.domains import SIZE
from fedlab.data.images.domain_suites import DomainSuite
from fedlab.data.images.pacs import PACS, augment
from fedlab.data.images.texture import Texture, textured
from fedlab.data.images.views import random_view
from fedlab.models.convnet import ConvNet
from fedlab.models.mixer import SMALL, Mixer
from fedlab.workload import WorkloadSpec
from fedlab.workloads.domain_suite import ACCURACY, DomainSuiteWorkload

WIDTH = 16  # channels of the first convolution; 20 ms a step of 64 on one core
STRONG_CROP, WEAK_CROP = 0.3, 0.6  # least area that a view of a client's image keeps


@dataclass(frozen=True)
class Pacs(DomainSuiteWorkload):
    """The workload's options and its methods, see :class:`fedlab.workload.Workload`; images (3, 32, 32) in [-1, 1]."""

    of: ClassVar[DomainSuite] = PACS
    source_view = staticmethod(augment)

    source: str = Field("photo", description="domain of the server, with labels")
    augment: bool = Field(True, description="random crops, flips and colors of the source, some images in gray")
    network: Literal["conv", "mixer"] = Field(
        default="conv", description="a convolutional network, or a small MLP-Mixer"
    )

    texture: Texture = Field(
        default="off", description="random textures of the source's images: randconv, pro_randconv"
    )

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return images as ``x`` and, if their owner has labels, ``y``; see :class:`DomainSuiteWorkload`."""
        examples = super().data(partition, split)
        return textured(examples, self.texture) if partition is None and split == "train" else examples

    def view(self, x: Tensor, weak: bool = False) -> Tensor:
        """Return a random crop of each image (batch, 3, 32, 32), mirrored half of the time; a weak one crops less."""
        return random_view(x, WEAK_CROP if weak else STRONG_CROP, 0.0, hflip=True)

    def model(self) -> nn.Module:
        """Return a fresh network with ``features`` and ``head``."""
        classes = len(PACS.classes)
        return Mixer(classes, SIZE, SMALL["tiny"]) if self.network == "mixer" else ConvNet(classes, "batch", WIDTH)


SPEC = WorkloadSpec(
    Pacs,
    oracle_overrides={"pacs.client_labels": True},
    primary_metric="accuracy",
    smooths_labels=True,
    metrics=(ACCURACY,),
)
