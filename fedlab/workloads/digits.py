"""Digits: a labelled source domain on the server, other domains on the clients.

**Metrics**: ``accuracy``, the share of test digits whose largest logit is the label's; ``loss``, mean cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.data import digits
from fedlab.data.augment import recolour, warp
from fedlab.data.examples import Batch, Examples
from fedlab.data.partition import dirichlet_shards
from fedlab.errors import ConfigError, DataError, near_match
from fedlab.models.digits import McdNet, SmallNet

NETWORKS: Mapping[str, type[nn.Module]] = {"small": SmallNet, "mcd": McdNet}
EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Digits:
    """The workload's knobs and its four answers, see :class:`fedlab.workload.Workload`."""

    source: str = Field("mnist", description="domain of the server, with labels")
    targets: str = Field("usps,mnist_m,optdigits,synthdigits", description="domains of the clients, comma-separated")
    setting: Literal["adaptation", "oracle", "shards"] = Field(
        "adaptation",
        description="what clients hold: a target domain unlabelled (adaptation), the same with training "
        "labels, for upper bounds only (oracle), or labelled shards of the source (shards)",
    )
    network: Literal["small", "mcd"] = Field("small", description="small (CPU) or mcd, the MCD paper's digit network")
    augment: bool = Field(True, description="random affine maps and colours of the source images")
    limit: int = Field(0, ge=0, description="at most so many examples of each part, for a quick look; 0: all")
    shards: int = Field(4, ge=1, description="clients of setting=shards")
    alpha: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="Dirichlet concentration of labels, setting=shards; small is skewed"
    )
    data_root: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse domains that do not exist or stand on both sides."""
        domains = self.domains
        if not domains:
            raise ConfigError("knob 'digits.targets' is empty; name at least one domain, for example usps")
        for domain in (self.source, *domains):
            if domain not in digits.DOMAINS:
                raise ConfigError(f"unknown digit domain {domain!r}; {near_match(domain, digits.DOMAINS)}")
        twice = [domain for domain in domains if domains.count(domain) > 1 or domain == self.source]
        if twice:
            raise ConfigError(
                f"domain {twice[0]!r} appears twice among source {self.source!r} and targets "
                f"{self.targets!r}; each domain has one owner"
            )

    @property
    def domains(self) -> tuple[str, ...]:
        """The target domains."""
        return tuple(name.strip() for name in self.targets.split(",") if name.strip())

    @property
    def clients(self) -> tuple[str, ...]:
        """A client for each target, or for each shard of the source."""
        if self.setting == "shards":
            return tuple(f"shard-{number}" for number in range(self.shards))
        return self.domains

    def model(self) -> nn.Module:
        """A fresh network with ``features`` and ``head``."""
        return NETWORKS[self.network]()

    def data(self, partition: int | None, split: str) -> Examples:
        """Images (3, 32, 32) in [-1, 1] as ``x``, labels as ``y`` where the holder has them.

        The server's training images come in a new random view each time they are read, if ``augment`` is on.
        """
        if partition is not None and not 0 <= partition < len(self.clients):
            raise DataError(
                f"there is no partition {partition}; this workload has {len(self.clients)}: {', '.join(self.clients)}"
            )
        if partition is None or self.setting == "shards":
            examples = self._read(self.source, "labelled" if split == "train" else split)
            if partition is not None:
                return self._shard(examples, partition, split)
            return self._augmented(examples) if split == "train" and self.augment else examples
        labelled = self.setting == "oracle" and split == "train"
        return self._read(self.domains[partition], "oracle" if labelled else split)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(model(batch["x"]), batch["y"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Examples) -> dict[str, float]:
        """Accuracy and cross-entropy of a model that maps ``x`` to logits, on labelled examples."""
        model.eval()
        weight = next(model.parameters())
        batches = [
            (batch["x"].to(weight.device), batch["y"].to(weight.device)) for batch in data.batches(EVALUATION_BATCH)
        ]
        logits = torch.cat([model(x) for x, _ in batches])
        labels = torch.cat([y for _, y in batches])
        return {
            "accuracy": float((logits.argmax(1) == labels).double().mean()),
            "loss": float(cross_entropy(logits, labels)),
        }

    def _read(self, domain: str, split: str) -> Examples:
        examples = digits.read(domain, split, Path(self.data_root) if self.data_root else None)
        columns = {name: column[: self.limit or None] for name, column in examples.columns.items()}
        return Examples(columns, examples.transform)

    def _augmented(self, examples: Examples) -> Examples:
        read = examples.transform or (lambda batch: batch)

        def view(batch: Batch) -> Batch:
            batch = read(batch)
            return {**batch, "x": recolour(warp(batch["x"]))}

        return Examples(examples.columns, view)

    def _shard(self, examples: Examples, partition: int, split: str) -> Examples:
        alpha = self.alpha if split == "train" else float("inf")  # every client tests on the same mix of classes
        rows = dirichlet_shards(examples.columns["y"], self.shards, alpha, self.seed)[partition]
        shard = Examples({name: column[rows] for name, column in examples.columns.items()}, examples.transform)
        return self._augmented(shard) if split == "train" and self.augment else shard
