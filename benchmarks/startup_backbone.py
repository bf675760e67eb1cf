"""STARTUP's workload on the features of a frozen ImageNet network, for ``python -m benchmarks.startup --backbone``.

Images are enlarged to 128 pixels. Their features, and those of a few random views of each image that is trained on,
are computed once and kept (``fedlab/workloads/frozen_features.py``). What is trained is a layer above them and the
head of the base classes; the layer changes nothing at first, so a model without any training is the ImageNet network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.sections import Value
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.images.image_stores import MemoryStore
from fedlab.models.feature_classifier import FeatureClassifier
from fedlab.workload import WorkloadSpec
from fedlab.workloads.backbones import LITE0, load_backbone
from fedlab.workloads.fewshot import EPISODES, FewShot
from fedlab.workloads.frozen_features import FrozenStages

PIXELS = 128
# Step sizes suit the squared length of the features, about 450, by which a step of the head is multiplied.
OPTIONS: Mapping[str, Value] = {
    "workload": "benchmarks.startup_backbone:SPEC",
    "fewshot.size": 64,
    "server.learning_rate": 0.001,
    "client.learning_rate": 0.001,
}


@dataclass(frozen=True)
class FrozenFewShot(FewShot):
    """Few-shot transfer whose inputs are frozen features: (1280,), or with those of views (1 + views, 1280)."""

    views: int = Field(2, ge=2, description="random views of each training image whose features are kept")
    hidden: int = Field(256, ge=1, description="width of the trained layer's hidden units")

    def model(self) -> nn.Module:
        """Return the trained layer and a fresh head."""
        width = load_backbone(LITE0).width
        classes = int(super().data(None, "test").columns["y"].max()) + 1
        return FeatureClassifier(Residual(width, self.hidden), nn.Linear(width, classes))

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return features as ``x``; of training images with those of their views, of which the server reads one."""
        columns = super().data(partition, split).columns
        if split != "train":
            return ArrayDataset({**columns, "x": self.frozen(columns["x"])})
        found = {**columns, "x": self.frozen(columns["x"], self.views)}
        return ArrayDataset(found, self._one_view if partition is None else None)

    def view(self, x: Tensor, weak: bool = False) -> Tensor:
        """Return one of the views of each example (batch, 1 + views, width) at random, (batch, width)."""
        return x[torch.arange(len(x)), torch.randint(1, x.shape[1], (len(x),))]

    def frozen(self, x: Tensor, views: int = 0) -> Tensor:
        """Return features of images (N, channels, side, side), uint8, and of so many random views of each."""
        colored = x.expand(-1, 3, -1, -1).contiguous()
        stages = FrozenStages(LITE0, "", 0, self.data_config.device)
        made_of = f"{self.min_crop_area} {self.jitter} {self.hflip}"
        return stages.features(MemoryStore(colored, PIXELS), super().view, views, made_of if views else "").clone()

    def _one_view(self, batch: Batch) -> Batch:
        return {**batch, "x": self.view(batch["x"])}


class Residual(nn.Module):
    """z + W relu(V z) with W = 0 at first; of examples with views the first is taken."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (batch, width) of x (batch, width) or (batch, 1 + views, width)."""
        z = x[:, 0] if x.dim() == 3 else x
        found: Tensor = z + self.up(self.down(z).relu())
        return found


SPEC = WorkloadSpec(FrozenFewShot, primary_metric="accuracy", smooths_labels=True, metrics=EPISODES, name="fewshot")
