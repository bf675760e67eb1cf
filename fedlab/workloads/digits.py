"""Digits: a labeled source domain on the server, other domains or folders of their own images on the clients.

**Metrics**: ``accuracy``, the fraction of test digits whose largest logit is the label's; ``loss``, mean cross-entropy.
None on data without labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.config.sections import split_names
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.digits import datasets, image_files
from fedlab.data.digits import image_folder as folders
from fedlab.data.digits.augment import WIDE, random_affine, source_views
from fedlab.data.digits.domains import SIZE
from fedlab.data.images.texture import Texture, textured
from fedlab.data.pixels import to_float
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, DataError
from fedlab.files import expand_user
from fedlab.models.convnet import ConvNet
from fedlab.models.digits import McdNet, SmallNet
from fedlab.models.mixer import SMALL, Mixer
from fedlab.models.mlp import MLP
from fedlab.workload import WorkloadSpec
from fedlab.workloads import domain_suite, shards
from fedlab.workloads.domain_suite import ACCURACY, ClientSpec

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "small": SmallNet,
    "mcd": McdNet,
    "mixer": lambda: Mixer(datasets.CLASSES, SIZE, SMALL["tiny"]),
    "conv": lambda: ConvNet(datasets.CLASSES, "group", WIDTH),
    "mlp": lambda: MLP(datasets.CLASSES, 3 * SIZE * SIZE),
}
WIDTH = 8  # channels of the first convolution of network=conv, which has 25,682 parameters
OWN = "@"  # before the name of a client that brings its own images


@dataclass(frozen=True)
class Digits:
    """The workload's options and its four methods, see :class:`fedlab.workload.Workload`."""

    test_partition: ClassVar[str] = "dirichlet"  # every shard tests on the same mix of classes

    source: str = Field("mnist", description="domain of the server, with labels")
    targets: str = Field(
        "usps,mnist_m,optdigits,synthdigits",
        description="domains of the clients, comma-separated; @name: a client that brings a folder of its own images",
    )
    setting: Literal["domains", "shards"] = Field(
        "domains", description="client data: a target domain each (domains), or labeled parts of the source (shards)"
    )
    client_labels: bool = Field(
        False, description="clients of setting=domains have training labels as well, for upper bounds only"
    )
    network: Literal["small", "mcd", "mixer", "conv", "mlp"] = Field(
        "small",
        description="small (CPU), mcd, the MCD paper's digit network, mixer, a small MLP-Mixer, conv, a smaller "
        "convolutional network with group norm, or mlp, a perceptron",
    )
    augment: bool | Literal["wide"] = Field(
        True, description="random affine maps and colors of the source images; wide: maps of twice the strength"
    )
    texture: Texture = Field("off", description="random textures of the source's images: randconv, pro_randconv")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    def __post_init__(self) -> None:
        """Validate the domains: each exists and has one owner, and clients with their own images need no labels."""
        if not self.domains:
            raise ConfigError("option 'digits.targets' is empty; name at least one domain, for example usps")
        domain_suite.check_known(self.source, datasets.DOMAINS, "digit")
        for domain in self.domains:
            if domain.startswith(OWN):
                _check_name(domain)
            else:
                otherwise = f" A client that brings its own images is written {OWN + domain!r}."
                domain_suite.check_known(domain, datasets.DOMAINS, "digit", otherwise)
        targets = [domain.removeprefix(OWN) for domain in self.domains]
        domain_suite.check_unique(self.source, targets, domain_suite.client_names(self._client_specs))
        bringing = self.data_config.client_folder or next(
            (domain for domain in self.domains if domain.startswith(OWN)), ""
        )
        if bringing and (self.client_labels or self.setting == "shards"):
            raise ConfigError(
                f"digits.setting={self.setting} with digits.client_labels={str(self.client_labels).lower()} gives "
                f"clients labels to train on, and a client's own images ({bringing}) have none; set "
                "digits.setting=domains and digits.client_labels=false, or leave that client out"
            )
        _ = self.partition

    @property
    def domains(self) -> tuple[str, ...]:
        """Targets as given; those of clients with their own images begin with ``@``."""
        return split_names("digits.targets", self.targets)

    @property
    def partition(self) -> str:
        """Scheme by which a target, or with setting=shards the source, is divided among clients."""
        return self.data_config.partition_kind(*domain_suite.KINDS)

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        if self.setting == "shards":
            return shards.unused_of_shards(self.partition)
        return domain_suite.unused_of_domains(self.data_config, self.partition)

    @property
    def _client_specs(self) -> tuple[ClientSpec, ...]:
        """Clients by partition; each that brings its own images is one client."""
        return _client_specs(self.domains, self.data_config.clients_per_domain)

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients: one for each target, each part of a target, or each shard of the source."""
        if self.setting == "shards":
            return shards.numbered_names("shard", self.data_config.num_shards)
        return domain_suite.client_names(self._client_specs)

    def model(self) -> nn.Module:
        """Return a fresh network with ``features`` and ``head``."""
        return NETWORKS[self.network]()

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return images (3, 32, 32) in [-1, 1] as ``x`` and, if their owner has labels, ``y``.

        With ``augment`` every read of the server's training images gives new random views. A client with a folder of
        its own images and no labeled test set in it gets its training images for "test" as well, without ``y``.
        """
        domain_suite.check_partition(partition, self.clients)
        if partition is None:
            examples = self.pool(split)
            return textured(examples, self.texture) if split == "train" else examples
        if self.setting == "shards":
            return shards.shard(self, partition, split)
        client = self._client_specs[partition]
        own = self._folder(client.domain)
        if own is not None:
            examples = folders.load_image_folder(own, split)
            return examples.subsample(
                self.data_config.max_examples or len(examples)
            )  # the first ones would be from few sub-folders
        return domain_suite.client_data(self, client, split, with_labels=self.client_labels)

    def pool(self, split: str) -> ArrayDataset:
        """Return all digits of the source with labels: the server's, and with setting=shards what clients share."""
        examples = self.read_domain(self.source, split, True)
        return self._augmented(examples) if split == "train" and self.augment else examples

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        domain = self.source
        if partition is not None and self.setting == "domains":
            domain = self._client_specs[partition].domain
            if own := self._folder(domain):
                return [DataSource(domain.removeprefix(OWN), len(self.data(partition, "train")), str(own))]
        return [
            datasets.digit_source(domain, self.data_config.root_folder, len(self.read_domain(domain, "train", False)))
        ]

    def labels(self, partition: int) -> Tensor | None:
        """See :class:`fedlab.workload.SupportsHiddenLabels`."""
        if self.setting == "shards":
            return shards.shard_labels(self, partition)
        client = self._client_specs[partition]
        if self._folder(client.domain):
            return None
        return domain_suite.client_data(self, client, "train", with_labels=True).columns["y"]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        smoothing = self.data_config.label_smoothing
        return cross_entropy(model(batch["x"]), batch["y"], label_smoothing=smoothing)

    def view(self, x: Tensor, weak: bool = False) -> Tensor:
        """Return a random affine map of each image (batch, 3, 32, 32); a weak one has half the strength.

        Colors stay, and pixels of the border are repeated: a client's images have grounds of any color.
        """
        return random_affine(x, padding="border", **({} if weak else WIDE))

    def images(self, paths: Sequence[Path]) -> ArrayDataset:
        """Return image files as ``x`` (3, 32, 32) in [-1, 1], read like a client's own.

        Raises
        ------
        DataError
            With the name of a file that is not an image.
        """
        return ArrayDataset({"x": image_files.load_image_files(paths)}, to_float)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy and cross-entropy of a model that maps ``x`` to logits; nothing without labels."""
        return domain_suite.accuracy_and_loss(model, data)

    def _folder(self, domain: str) -> Path | None:
        """Return the folder of a client's own images; None for a client with a domain of the package.

        Raises
        ------
        DataError
            When the client should bring its own images and there are none.
        """
        if self.data_config.client_folder:
            return expand_user(self.data_config.client_folder)
        if not domain.startswith(OWN):
            return None
        name = domain.removeprefix(OWN)
        simulated = Path(self.data_config.root or "DATA_ROOT") / name
        if self.data_config.root and simulated.is_dir():
            return simulated
        raise DataError(
            f"client {name!r} brings its own images, and there are none here: join it with `fedlab join HOST:PORT "
            f"--domain {name} --data FOLDER`, or to simulate it put images into {simulated}"
            f"{'' if self.data_config.root else ' and set data.root to DATA_ROOT'}"
        )

    def read_domain(self, domain: str, split: str, with_labels: bool) -> ArrayDataset:
        """See :class:`fedlab.workloads.domain_suite.DividesDomains`."""
        bound = domain != self.source
        examples = datasets.load_digits(
            domain, split, self.data_config.root_folder, with_labels=with_labels, upper_bound=bound
        )
        columns = {name: column[: self.data_config.max_examples or None] for name, column in examples.columns.items()}
        return ArrayDataset(columns, examples.transform)

    def _augmented(self, examples: ArrayDataset) -> ArrayDataset:
        views = source_views(examples.transform or (lambda batch: batch), **(WIDE if self.augment == "wide" else {}))
        return ArrayDataset(examples.columns, views, examples.host_only)


@lru_cache(maxsize=16)
def _client_specs(domains: tuple[str, ...], parts: int) -> tuple[ClientSpec, ...]:
    return tuple(
        client
        for domain in domains
        for client in (
            (ClientSpec(domain.removeprefix(OWN), domain),)
            if domain.startswith(OWN)
            else domain_suite.client_specs((domain,), parts)
        )
    )


def _check_name(target: str) -> None:
    """Validate a client's name, which names its folder as well."""
    name = target.removeprefix(OWN)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(
            f"target {target!r} is not a client's name; write {OWN} and a name of letters, digits, '_', '-' and '.', "
            f"for example {OWN}mine"
        )


SPEC = WorkloadSpec(
    Digits,
    oracle_overrides={"digits.client_labels": True},
    primary_metric="accuracy",
    smooths_labels=True,
    metrics=(ACCURACY,),
)
