"""PACS: labelled images of one style on the server, unlabelled ones of the other three styles on the clients.

**Source and departures**: ``fedlab/data/pacs.py``; and a small network from scratch, where published results start from
one trained on ImageNet and are far above what is found here.

**Metrics**: ``accuracy``, the share of test images whose largest logit is the label's; ``loss``, mean cross-entropy.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.data.domains import SIZE
from fedlab.data.examples import Batch, Examples
from fedlab.data.pacs import PACS, viewed
from fedlab.models.convnet import ConvNet
from fedlab.models.mixer import SMALL, Mixer
from fedlab.workloads import domains
from fedlab.workloads.domains import Holders, Kind

WIDTH = 16  # channels of the first convolution; 20 ms a step of 64 on one core


@dataclass(frozen=True)
class Pacs:
    """The workload's knobs and its four answers, see :class:`fedlab.workload.Workload`."""

    source: str = Field("photo", description="domain of the server, with labels")
    targets: str = Field("", description="domains of the clients, comma-separated; empty: all but the source")
    setting: Literal["adaptation", "oracle"] = Field(
        "adaptation", description="clients hold domains unlabelled, or with training labels for upper bounds (oracle)"
    )
    augment: bool = Field(
        True, description="random crops, mirror images and colours of the source, some without colour"
    )
    network: Literal["conv", "mixer"] = Field("conv", description="a convolutional network, or a small MLP-Mixer")
    limit: int = Field(0, ge=0, description="at most so many examples of each part, for a quick look; 0: all")
    split: int = Field(1, ge=1, description="clients that share one target's training part; all test on its whole")
    partition: Kind = Field(
        "dirichlet", description="how they share: iid, dirichlet (skewed labels), shards (sorted by label) or quantity"
    )
    alpha: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="Dirichlet concentration of labels or sizes; small is skewed"
    )
    data_root: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse domains that do not exist or stand on both sides."""
        self._holders.check()

    @property
    def _holders(self) -> Holders:
        view, labelled = viewed if self.augment else PACS.floats, self.setting == "oracle"
        return Holders(
            of=PACS,
            view=view,
            source=self.source,
            targets=self.targets,
            labelled=labelled,
            split=self.split,
            partition=self.partition,
            alpha=self.alpha,
            limit=self.limit,
            data_root=self.data_root,
            seed=self.seed,
        )

    @property
    def clients(self) -> tuple[str, ...]:
        """A client for each target, or for each of its parts."""
        return self._holders.clients

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        return PACS.classes

    def model(self) -> nn.Module:
        """A fresh network with ``features`` and ``head``."""
        classes = len(PACS.classes)
        return Mixer(classes, SIZE, SMALL["tiny"]) if self.network == "mixer" else ConvNet(classes, "batch", WIDTH)

    def data(self, partition: int | None, split: str) -> Examples:
        """Images (3, 32, 32) in [-1, 1] as ``x``, labels as ``y`` where the holder has them.

        The server's training examples come in a new random view each time they are read, if ``augment`` is on.
        """
        return self._holders.data(partition, split)

    def labels(self, partition: int) -> Tensor:
        """See :class:`fedlab.workload.KnowsLabels`."""
        return self._holders.labels(partition)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module, data: Examples) -> dict[str, float]:
        """Accuracy and cross-entropy."""
        return domains.accuracy_and_loss(model, data)
