"""Sections of every run: its length and where it runs, messages, files, noise, and its early end."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.sections import Fraction, NonNegativeFloat, parse_section

# Clients of a process at a time with vectorize=auto, at most, by type of device. The more a GPU has at once, the more
# share the start of an operation; a CPU has the bits of this number, and its cache rarely holds more.
AT_ONCE = {"cpu": 256, "cuda": 1024}


@dataclass(frozen=True)
class RunConfig:
    """The experiment, its length and where it runs."""

    name: str = Field(
        "", pattern=r"^[^/\\]*$", description="name of the run directory, without slashes; empty: the preset's"
    )
    workload: str = Field("digits", description="what is learned: a name of `fedlab list`, or pkg.module:Name")
    strategy: str = Field("dualadapt", description="how it is learned together: a name, or pkg.module:Name")
    engine: str = Field("local", description="what carries the messages: a name, or pkg.module:Name")
    rounds: int = Field(5, ge=1, description="federated rounds")
    seed: int = Field(0, ge=0, description="run seed; every random stream is named from it")
    min_clients: int = Field(
        0, ge=0, description="fewest clients that a phase needs, else the run stops, see comm.attempts; 0: all"
    )
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
        pattern=r"^(off|auto|[1-9][0-9]{0,8})$",
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
    def vectorizes(self) -> bool:
        """True if a process gets several messages at a time, to train their clients at once."""
        return self.vectorize != "off"

    def clients_at_once(self, device: str) -> int:
        """Return how many messages a process gets at a time on a type of device; 0: clients train one by one."""
        if self.vectorize.isdecimal():
            return int(self.vectorize)
        return AT_ONCE[device] if self.vectorizes else 0


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
    attempts: int = Field(
        3,
        ge=1,
        description="attempts at a phase of deployed clients that fewer than min_clients answer; then it stops",
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
