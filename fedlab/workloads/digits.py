"""Digits: a labelled source domain on the server, other domains or folders of their own images on the clients.

**Metrics**: ``accuracy``, the share of test digits whose largest logit is the label's; ``loss``, mean cross-entropy.
None on data without labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.data.dataset import Batch, ArrayDataset
from fedlab.data.digits import datasets, image_files
from fedlab.data.digits import image_folder as folders
from fedlab.data.digits.augment import WIDE, random_recolor, random_affine
from fedlab.data.digits.domains import SIZE
from fedlab.data.partitioners import dirichlet, partition_indices
from fedlab.data.pixels import to_float
from fedlab.errors import ConfigError, DataError
from fedlab.models.digits import McdNet, SmallNet
from fedlab.models.mixer import SMALL, Mixer
from fedlab.workloads import domain_suite
from fedlab.workloads.domain_suite import Kind, Owner

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "small": SmallNet,
    "mcd": McdNet,
    "mixer": lambda: Mixer(datasets.CLASSES, SIZE, SMALL["tiny"]),
}
OWN = "@"  # before the name of a client that brings its own images


@dataclass(frozen=True)
class Digits:
    """The workload's knobs and its four answers, see :class:`fedlab.workload.Workload`."""

    source: str = Field("mnist", description="domain of the server, with labels")
    targets: str = Field(
        "usps,mnist_m,optdigits,synthdigits",
        description="domains of the clients, comma-separated; @name: a client that brings a folder of its own images",
    )
    setting: Literal["adaptation", "oracle", "shards"] = Field(
        "adaptation",
        description="what clients hold: a target domain unlabelled (adaptation), the same with training "
        "labels, for upper bounds only (oracle), or labelled shards of the source (shards)",
    )
    network: Literal["small", "mcd", "mixer"] = Field(
        "small", description="small (CPU), mcd, the MCD paper's digit network, or mixer, a small MLP-Mixer"
    )
    augment: bool | Literal["wide"] = Field(
        True, description="random affine maps and colours of the source images; wide: maps of twice the strength"
    )
    limit: int = Field(0, ge=0, description="at most so many examples of each part, for a quick look; 0: all")
    shards: int = Field(4, ge=1, description="clients of setting=shards")
    split: int = Field(1, ge=1, description="clients that share one target's training part; all test on its whole")
    partition: Kind = Field(
        "dirichlet",
        description="how a target, or with setting=shards the source, is split over clients: iid, dirichlet (skewed "
        "labels), shards (sorted by label, two pieces each) or quantity (skewed sizes)",
    )
    alpha: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="Dirichlet concentration of labels or sizes; small is skewed"
    )
    data_root: str = ""
    folder: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse domains that do not exist or stand on both sides, and labels that nobody has."""
        if not self.domains:
            raise ConfigError("knob 'digits.targets' is empty; name at least one domain, for example usps")
        domain_suite.check_known(self.source, datasets.DOMAINS, "digit")
        for domain in self.domains:
            if domain.startswith(OWN):
                _check_name(domain)
            else:
                otherwise = f" A client that brings its own images is written {OWN + domain!r}."
                domain_suite.check_known(domain, datasets.DOMAINS, "digit", otherwise)
        targets = [domain.removeprefix(OWN) for domain in self.domains]
        domain_suite.check_once(self.source, targets, [owner.name for owner in self._owners])
        bringing = self.folder or next((domain for domain in self.domains if domain.startswith(OWN)), "")
        if bringing and self.setting != "adaptation":
            raise ConfigError(
                f"digits.setting={self.setting} gives clients labels to train on, and a client's own images "
                f"({bringing}) have none; set digits.setting=adaptation, or leave that client out"
            )

    @property
    def domains(self) -> tuple[str, ...]:
        """The targets as they were written, those with images of their own behind an ``@``."""
        return domain_suite.names_in(self.targets)

    @property
    def _owners(self) -> list[Owner]:
        """Who holds which target; those that bring their own images are one client each."""
        return [
            owner
            for domain in self.domains
            for owner in (
                [Owner(domain.removeprefix(OWN), domain)]
                if domain.startswith(OWN)
                else domain_suite.owners([domain], self.split)
            )
        ]

    @property
    def clients(self) -> tuple[str, ...]:
        """A client for each target, or for each of its parts, or for each shard of the source."""
        if self.setting == "shards":
            return tuple(f"shard-{number}" for number in range(self.shards))
        return tuple(owner.name for owner in self._owners)

    def model(self) -> nn.Module:
        """A fresh network with ``features`` and ``head``."""
        return NETWORKS[self.network]()

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Images (3, 32, 32) in [-1, 1] as ``x``, labels as ``y`` where the holder has them.

        The server's training images come in a new random view each time they are read, if ``augment`` is on. A client
        with a folder of its own images and no labelled test set in it gets its training images for "test", too, and no
        ``y``.
        """
        domain_suite.check_partition(partition, self.clients)
        if partition is None or self.setting == "shards":
            examples = self._read(self.source, split, True)
            if partition is not None:
                return self._shard(examples, partition, split)
            return self._augmented(examples) if split == "train" and self.augment else examples
        owner = self._owners[partition]
        own = self._folder(owner.domain)
        if own is not None:
            examples = folders.load_image_folder(own, split)
            return examples.subsample(self.limit or len(examples))  # the first ones would be of few sub-folders
        return self._held(owner, split, labelled=self.setting == "oracle")

    def labels(self, partition: int) -> Tensor | None:
        """See :class:`fedlab.workload.KnowsLabels`."""
        if self.setting == "shards":
            return self.data(partition, "train").columns["y"]
        owner = self._owners[partition]
        return None if self._folder(owner.domain) else self._held(owner, "train", labelled=True).columns["y"]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(model(batch["x"]), batch["y"])

    def images(self, paths: Sequence[Path]) -> ArrayDataset:
        """Image files as ``x`` (3, 32, 32) in [-1, 1], read as a client's own are; DataError names one that is not."""
        return ArrayDataset({"x": image_files.load_image_files(paths)}, to_float)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Accuracy and cross-entropy of a model that maps ``x`` to logits; without labels nothing is measured."""
        return domain_suite.accuracy_and_loss(model, data)

    def _held(self, owner: Owner, split: str, labelled: bool) -> ArrayDataset:
        return domain_suite.held(self._read, owner, split, labelled, self.partition, self.alpha, self.seed)

    def _folder(self, domain: str) -> Path | None:
        """Where a client's own images are, or None for a client that holds a domain of the package.

        Raises
        ------
        DataError
            When the client brings its own and none were given.
        """
        if self.folder:
            return Path(self.folder).expanduser()
        if not domain.startswith(OWN):
            return None
        name = domain.removeprefix(OWN)
        simulated = Path(self.data_root or "DATA_ROOT") / name
        if self.data_root and simulated.is_dir():
            return simulated
        raise DataError(
            f"client {name!r} brings its own images, and there are none here: join it with `fedlab join HOST:PORT "
            f"--domain {name} --data FOLDER`, or to simulate it put images into {simulated}"
            f"{'' if self.data_root else ' and set data_root to DATA_ROOT'}"
        )

    def _read(self, domain: str, split: str, with_labels: bool) -> ArrayDataset:
        root = Path(self.data_root) if self.data_root else None
        bound = domain != self.source
        examples = datasets.load_digits(domain, split, root, with_labels=with_labels, upper_bound=bound)
        columns = {name: column[: self.limit or None] for name, column in examples.columns.items()}
        return ArrayDataset(columns, examples.transform)

    def _augmented(self, examples: ArrayDataset) -> ArrayDataset:
        read = examples.transform or (lambda batch: batch)

        def view(batch: Batch) -> Batch:
            batch = read(batch)
            return {**batch, "x": random_recolor(random_affine(batch["x"], **(WIDE if self.augment == "wide" else {})))}

        return ArrayDataset(examples.columns, view)

    def _shard(self, examples: ArrayDataset, partition: int, part: str) -> ArrayDataset:
        y = examples.columns["y"]
        if part == "train":
            rows = partition_indices(self.partition, y, self.shards, self.alpha, self.seed)
        else:
            rows = dirichlet(y, self.shards, float("inf"), self.seed)  # every client tests on the same mix of classes
        shard = examples.select(rows[partition])
        return self._augmented(shard) if part == "train" and self.augment else shard


def _check_name(target: str) -> None:
    """Refuse the name of a client that could not name its folder as well."""
    name = target.removeprefix(OWN)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(
            f"target {target!r} names no client; write {OWN} and a name of letters, digits, '_', '-' and '.', "
            f"for example {OWN}mine"
        )
