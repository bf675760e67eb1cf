"""The section ``data``: where data comes from and how it is divided among clients."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.sections import parse_section
from fedlab.errors import ConfigError

DATA_CONFIG = "data_config"  # the field in which a workload is given the run's DataConfig, where it has one
MOST_CLIENTS = 1_000_000  # each has a name in memory before a run begins
SHARDS = 4  # clients among which one set is divided where nothing else is asked for


@dataclass(frozen=True)
class DataConfig:
    """Where data comes from and how it is divided among clients."""

    root: str = Field("", description="folder of full data sets; empty: $FEDLAB_DATA, else the embedded sets")
    num_clients: int = Field(
        0,
        ge=0,
        le=MOST_CLIENTS,
        description="clients of the run; 0: one for each domain, or 4 where one set is divided",
    )
    clients_per_domain: int = Field(
        1,
        ge=1,
        le=MOST_CLIENTS,
        description="clients that share one domain's training data; all test on all of its test data",
    )
    partition: str = Field(
        "auto",
        description="how a set is divided: iid, dirichlet (skewed labels and sizes), balanced_dirichlet (skewed "
        "labels, equal sizes), shards (sorted by label, two pieces each), quantity (skewed sizes); molecules: iid, "
        "dirichlet, scaffold, size; auto: the workload's default",
    )
    alpha: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="Dirichlet concentration of labels or sizes; small is skewed"
    )
    min_examples: int = Field(10, ge=1, description="fewest examples of a client where a set is divided")
    test_classes: Literal["even", "own"] = Field(
        "even",
        description="test examples of a client where a set of classes is divided: even: the same mix for every client; "
        "own: in the proportions of its training examples, for which personal models are made",
    )
    max_examples: int = Field(0, ge=0, description="at most so many examples of each part, for a quick look; 0: all")
    expect_full: bool = Field(
        False, description="the options are made for full data sets: a run that has only parts of them says so"
    )
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="fraction of each label that is spread over all classes in the training loss"
    )
    client_folder: str = Field("", exclude=True)  # a client's own data, `fedlab join --data`
    seed: int = Field(0, exclude=True)  # the run's
    device: str = Field("cpu", exclude=True)  # the run's

    @property
    def root_folder(self) -> Path | None:
        """Folder of full data sets; None: the sets inside the package are read."""
        return Path(self.root) if self.root else None

    @property
    def num_shards(self) -> int:
        """Number of clients among which one set is divided."""
        return self.num_clients or SHARDS

    def partition_kind(self, *kinds: str) -> str:
        """Return how a set is divided: the option, or the first of ``kinds``, which a workload can do, for "auto".

        Raises
        ------
        ConfigError
            When the workload cannot do what is asked for.
        """
        kind = kinds[0] if self.partition == "auto" else self.partition
        if kind not in kinds:
            raise ConfigError(f"option 'data.partition': got {self.partition!r}; this workload has {', '.join(kinds)}")
        return kind


DEFAULT_DATA: DataConfig = parse_section(DataConfig, "data", {})
