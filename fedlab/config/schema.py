"""The configuration of a run: one tree of frozen dataclasses, resolved once and read everywhere below.

Every section is a pydantic dataclass whose fields are options. An option is written ``section.field``
(``server.steps``); those of :class:`RunConfig` have no prefix (``rounds``). Sections of the workload, the strategy, its
aggregation rule and the engine are defined where these are, and are named after them (``digits.targets``).

A field with ``exclude=True`` is no option: it is set by the program, not by a user.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.lr_schedules import ScheduledConfig
from fedlab.config.sections import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    Value,
    option_values,
    parse_section,
    split_names,
    to_toml,
)
from fedlab.errors import ConfigError, suggest

SHARDS = 4  # clients among which one set is divided where nothing else is asked for
AT_ONCE = 256  # clients of a process at a time with vectorize=auto, at most
RUN = ""  # prefix of RunConfig's options
DATA_CONFIG = "data_config"  # the field in which a workload is given the run's DataConfig, where it has one


@dataclass(frozen=True)
class RunConfig:
    """The experiment, its length and where it runs."""

    name: str = Field("", pattern=r"^[^/\\]*$", description="name of the run directory; empty: the preset's")
    workload: str = Field("digits", description="what is learned: a name of `fedlab list`, or pkg.module:Name")
    strategy: str = Field("dualadapt", description="how it is learned together: a name, or pkg.module:Name")
    engine: str = Field("local", description="what carries the messages: a name, or pkg.module:Name")
    rounds: int = Field(5, ge=1, description="federated rounds")
    seed: int = Field(0, ge=0, description="run seed; every random stream is named from it")
    min_clients: int = Field(0, ge=0, description="fewest clients that a phase needs, else the run stops; 0: all")
    fraction_train: Fraction = Field(1.0, description="fraction of the clients that train in a round, sampled anew")
    fraction_evaluate: Fraction = Field(1.0, description="fraction of the clients that are tested, sampled anew")
    evaluate_every: int = Field(1, ge=1, description="rounds between two tests; the first model and the last have one")
    sampling: Literal["uniform", "examples"] = Field(
        "uniform",
        description="how clients are sampled: all alike, or by their numbers of examples, and then they weigh the same",
    )
    schedule: str = Field(
        "",
        description="file that names the clients that train, for which a round waits: one line for each round, "
        "separated by commas",
    )
    join_rounds: str = Field("", description="clients that join late and in which round, as usps=3,optdigits=4")
    track: str = Field(
        "", description="where metrics go besides TensorBoard's files: mlflow, wandb, or both with a comma between them"
    )
    track_project: str = Field("fedlab", min_length=1, description="project or experiment of these trackers")
    track_group: str = Field("", description="group of the run there; empty: the comparison's name, if it is of one")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "float32", "tf32", "bf16"] = Field(
        "auto",
        description="of training: float32, tf32 (matrix products, on GPUs that have it), bf16 (activations); "
        "auto: tf32",
    )
    cuda_graphs: bool = Field(True, description="launch all kernels of a training step at once, on a GPU")
    compile: bool = Field(False, description="compile networks on a GPU by torch.compile: minutes first, then faster")
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads of each process; they fix the bits; 0: 2, or 1 with more than 8 clients a round",
    )
    vectorize: str = Field(
        "off",
        pattern=r"^(off|auto|[1-9]\d*)$",
        description="clients of a process that train at once: a number, auto, or off; others than off have other bits",
    )
    sample_every: int = Field(
        1, ge=1, description="rounds between two evaluations of a generative model's samples; the last has one anyway"
    )
    report: bool = Field(True, description="write the run's page at its end; `fedlab report RUN` writes it later, too")
    budget_bytes: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="bytes of training after which the run ends with its round; 0: none"
    )
    budget_seconds: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds of training after which the run ends with its round; bits depend on the machine; 0: none",
    )

    @property
    def clients_at_once(self) -> int:
        """Number of messages that a process gets at a time, to train their clients at once; 0: one by one."""
        return int(self.vectorize) if self.vectorize.isdecimal() else {"off": 0, "auto": AT_ONCE}[self.vectorize]


@dataclass(frozen=True)
class CommConfig:
    """Messages between server and clients."""

    compression: Literal["float32", "float16", "int8"] = Field(
        "float32", description="floats in messages: as they are, in half precision, or matrices in 8 bits"
    )
    connect_timeout: float = Field(60.0, gt=0, description="seconds to wait until all clients are connected")
    idle_timeout: float = Field(
        600.0, gt=0, description="seconds without any reply after which clients that have not answered are left out"
    )
    round_timeout: float = Field(
        0.0, ge=0, description="seconds after which a phase ends without those who have not answered; 0: none"
    )
    max_reply_mb: float = Field(256.0, gt=0, description="largest reply of a client, in megabytes")
    max_update_norm_ratio: float = Field(
        10.0, gt=0, description="maximum norm of a client update, as a multiple of the norm of the server's arrays"
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """Files that a run keeps on disk in addition to its metrics."""

    keep: int = Field(2, ge=1, description="newest checkpoints kept in the run directory")
    every: int = Field(1, ge=1, description="rounds between two checkpoints; the last round has one")
    keep_initial: bool = Field(False, description="keep the checkpoint before round 1 as well")
    pretrain_cache: str = Field("", description="folder in which runs share their pre-training; empty: none")


@dataclass(frozen=True)
class DataConfig:
    """Where data comes from and how it is divided among clients."""

    root: str = Field("", description="folder of full data sets; empty: $FEDLAB_DATA, else the embedded sets")
    num_clients: int = Field(
        0, ge=0, description="clients of the run; 0: one for each domain, or 4 where one set is divided"
    )
    clients_per_domain: int = Field(
        1, ge=1, description="clients that share one domain's training data; all test on all of its test data"
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
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="fraction of each label that is spread over all classes in the training loss"
    )
    client_folder: str = Field("", exclude=True)  # a client's own data, `fedlab join --data`
    seed: int = Field(0, exclude=True)  # the run's
    device: str = Field("cpu", exclude=True)  # the run's

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


@dataclass(frozen=True)
class ServerConfig(ScheduledConfig):
    """Training of the server on its labeled data: the same options and the same batches for every strategy."""

    pretrain_steps: int = Field(800, ge=0, description="steps on labeled source data before round 1")
    pretrain_learning_rate: PositiveFloat = Field(
        2e-3, description="largest learning rate of the one-cycle pre-training"
    )
    steps: int = Field(48, ge=0, description="source steps a round (R_s)")
    batch_size: int = Field(128, ge=2, description="source examples a step")
    accumulate_steps: int = Field(
        1, ge=1, description="batches of batch_size examples whose gradients are averaged in one step of a round"
    )
    learning_rate: PositiveFloat = Field(1e-3, description="Adam's learning rate on the server")
    ema_decay: float = Field(0.98, ge=0.0, lt=1.0, description="decay a step of the averaged (EMA) model; 0: none")
    max_grad_norm: NonNegativeFloat = Field(
        0.0, description="maximum norm of a gradient in the steps of a round; 0: no clipping"
    )
    evaluate: bool = Field(False, description="test the global model on the server's own test data")
    agreement: Literal["auto", "limit", "off"] = Field(
        "auto",
        description="limit: what a client of four or more adds to a round is limited by what the others add; off: not; "
        "auto: limit for real clients, off for simulated ones",
    )
    max_replies_mb: float = Field(
        2048.0, gt=0, description="megabytes of models for rules that need all replies of a round at once"
    )


DEFAULT_SERVER: ServerConfig = parse_section(ServerConfig, "server", {})


@dataclass(frozen=True)
class ClientConfig(ScheduledConfig):
    """Training of a client on its own data between two messages."""

    steps: int = Field(200, ge=0, description="local steps a round (R_c), where client.epochs is 0")
    epochs: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="local passes a round over a client's examples; 0: client.steps"
    )
    batch_size: int = Field(256, ge=2, description="examples a step")
    accumulate_steps: int = Field(
        1, ge=1, description="batches of batch_size examples whose gradients are averaged in one step"
    )
    learning_rate: PositiveFloat = Field(5e-3, description="first learning rate on the client")
    momentum: float = Field(
        0.9,
        ge=0.0,
        lt=1.0,
        description="momentum of SGD of whole models on the client (rho); scaffold takes larger steps in its place",
    )
    weight_decay: NonNegativeFloat = Field(
        0.0, description="weight decay of whole models on the client, added to gradients"
    )
    optimizer: Literal["sgd", "adam"] = Field(
        "sgd", description="of whole models on the client, fresh each round: SGD with momentum, or Adam"
    )
    max_grad_norm: NonNegativeFloat = Field(
        0.0, description="maximum norm of a gradient of whole models on the client; 0: no clipping"
    )
    ema_decay: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="decay a step of the averaged (EMA) whole model that a client sends; 0: the last",
    )
    evaluate: bool = Field(True, description="test the model on each client's test data")

    @property
    def trains(self) -> bool:
        """True if a client takes any local step."""
        return bool(self.steps or self.epochs)

    def local_steps(self, examples: int) -> int:
        """Return the number of local steps a round of a client with so many examples."""
        batch = self.batch_size * self.accumulate_steps
        return math.ceil(self.epochs * examples / batch) if self.epochs else self.steps


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy, of rules and strategies that add noise."""

    noise: Literal["auto", "secret", "seeded"] = Field(
        "auto",
        description="secret: noise from the operating system's entropy, so that no run repeats; seeded: from the run's "
        "seed, repeatable, and whoever has the seed can subtract it; auto: secret with real clients, else seeded",
    )
    delta: float = Field(1e-5, gt=0.0, lt=1.0, description="delta at which epsilon is given")
    max_epsilon: NonNegativeFloat = Field(
        0.0, description="privacy budget: the run ends before a release that would bring epsilon above it; 0: none"
    )


@dataclass(frozen=True)
class StopConfig:
    """The end of a run before its last round, when it improves no more."""

    metric: str = Field("", description="metric, or group of metrics, by which a run ends early; empty: none")
    patience: int = Field(
        3, ge=1, description="tests without an improvement of stop.metric after which the next round is the last"
    )


DEFAULT_STOP: StopConfig = parse_section(StopConfig, "stop", {})


@dataclass(frozen=True)
class RayConfig:
    """Flower's simulation engine."""

    address: str = Field("", description="address of a Ray cluster to join; empty: start a private one")
    cpus: float = Field(1.0, gt=0, allow_inf_nan=False, description="CPUs reserved for each client")
    gpus: float = Field(0.0, ge=0, allow_inf_nan=False, description="fraction of a GPU reserved for each client")


@dataclass(frozen=True)
class InProcessConfig:
    """All clients in this process and thread."""

    isolate: bool = Field(
        False, description="serialize every message as on a network, to find code that shares memory; slower"
    )


@dataclass(frozen=True)
class PoolConfig:
    """Clients in worker processes of this machine."""

    workers: int = Field(0, ge=0, description="processes; 0: one for each core, or as many as GPUs have places")
    clients_per_gpu: int = Field(1, ge=1, description="processes that share one GPU")


@dataclass(frozen=True)
class GrpcConfig:
    """Real clients over gRPC: where the server listens, and what it proves itself with."""

    address: str = Field("0.0.0.0:9092", description="host:port at which clients reach the server")
    certificates: str = Field("certs", description="folder of `fedlab certs`: the server's credentials, client keys")
    insecure: bool = Field(False, description="plain text, and clients that prove nothing")


DEFAULT_INPROCESS: InProcessConfig = parse_section(InProcessConfig, "inprocess", {})
DEFAULT_POOL: PoolConfig = parse_section(PoolConfig, "pool", {})


@dataclass(frozen=True)
class NoOptions:
    """The section of something without options."""


COMMON_SECTIONS: Mapping[str, type] = {
    RUN: RunConfig,
    "comm": CommConfig,
    "checkpoint": CheckpointConfig,
    "data": DataConfig,
    "server": ServerConfig,
    "client": ClientConfig,
    "dp": PrivacyConfig,
    "stop": StopConfig,
}


@plain_dataclass(frozen=True)
class Plugin:
    """One of the things that a run chooses by name, as the registry found it.

    Attributes
    ----------
    reference
        How it was asked for: a name, or an import path ``pkg.module:Name``.
    section
        Prefix of its options.
    spec
        What describes it: a WorkloadSpec, StrategySpec, AggregationSpec or EngineSpec.
    """

    reference: str
    section: str
    spec: Any


@plain_dataclass(frozen=True)
class Config:
    """Every option of one run, typed.

    Attributes
    ----------
    run, comm, checkpoint, data, server, client, dp, stop
        The sections that every run has.
    workload
        The workload itself: its fields are its options.
    strategy, aggregation, adaptation, engine
        Options of the strategy, of the rule by which it combines whole models and of the method by which its clients
        adapt (None where it has none), of the engine.
    plugins
        What was found under the names of workload, strategy, aggregation, adaptation and engine.
    """

    run: RunConfig
    comm: CommConfig
    checkpoint: CheckpointConfig
    data: DataConfig
    server: ServerConfig
    client: ClientConfig
    dp: PrivacyConfig
    stop: StopConfig
    workload: Any
    strategy: Any
    aggregation: Any
    adaptation: Any
    engine: Any
    plugins: Mapping[str, Plugin]

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients that take part, by partition."""
        return tuple(self.workload.clients[: self.data.num_clients or None])

    @property
    def secret_noise(self) -> bool:
        """True if the noise of differential privacy comes from the operating system, not from the run's seed."""
        simulates: bool = self.plugins["engine"].spec.simulates_clients
        return self.dp.noise == "secret" or (self.dp.noise == "auto" and not simulates)

    @property
    def clients_limit_each_other(self) -> bool:
        """True if what a client adds to a round is limited by what the others add."""
        simulates: bool = self.plugins["engine"].spec.simulates_clients
        return self.server.agreement == "limit" or (self.server.agreement == "auto" and not simulates)

    def for_client(self, server_round: int) -> Config:
        """Return the configuration with which a client trains in a round: its learning rate is that of the round."""
        client = self.client.at_round(server_round, self.run.rounds)
        return self if client is self.client else replace(self, client=client)

    def sections(self) -> dict[str, Any]:
        """Return every section by its prefix, those that every run has first."""
        found = {
            RUN: self.run,
            "comm": self.comm,
            "checkpoint": self.checkpoint,
            "data": self.data,
            "server": self.server,
            "client": self.client,
            "dp": self.dp,
            "stop": self.stop,
        }
        for kind, plugin in self.plugins.items():
            section = getattr(self, kind)
            known = isinstance(section, plugin.spec.options)  # else an object that was made elsewhere, as it is
            found.setdefault(plugin.section, section if known else NoOptions())
        return found

    def options(self) -> dict[str, Value]:
        """Return every option by its key, as ``{"rounds": 5, "server.steps": 48, ...}``: for display and comparison."""
        return {
            f"{prefix}.{name}" if prefix else name: value
            for prefix, section in self.sections().items()
            for name, value in option_values(section).items()
        }

    def to_toml(self) -> str:
        """Return the configuration as TOML text, which is itself a preset."""
        return to_toml(self.options())


def parse_join_rounds(text: str, names: Mapping[int, str]) -> dict[int, int]:
    """Return the round in which each late joiner joins, by partition, from ``usps=3,optdigits=4``.

    Raises
    ------
    ConfigError
        When an item is not ``client=round``, or names a client that the run does not have.
    """
    partition_of = {name: partition for partition, name in names.items()}
    found: dict[int, int] = {}
    for item in split_names("join_rounds", text):
        name, _, number = (part.strip() for part in item.partition("="))
        if not number.isdigit() or int(number) < 1:
            raise ConfigError(
                f"option 'join_rounds': {item!r} is not client=round with a round from 1, for example usps=3"
            )
        if name not in partition_of:
            raise ConfigError(f"option 'join_rounds': this run has no client {name!r}; {suggest(name, partition_of)}")
        found[partition_of[name]] = int(number)
    if found and len(found) == len(names):
        raise ConfigError("option 'join_rounds': every client joins late; at least one must be there from the start")
    return found
