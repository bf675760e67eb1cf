"""Knobs: every setting of a run as one flat table, checked in one place.

A *section* is a pydantic dataclass whose fields are knobs; its prefix in the table is the section's name
(``dualadapt.mixup``), the core section has none (``rounds``). A field that a section shares by name with the core
section *is* the core knob: a workload that has a field ``data_root`` is given the run's.

Flower's run config is flat and typed the same way, so a resolved table travels to server and clients unchanged. Below
this module settings are plain typed arguments.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fedlab.errors import ConfigError, suggest

Value = bool | int | float | str
Flat = Mapping[str, Value]
Section = TypeVar("Section")

NAMESAKES = 3  # knobs of one name in several sections that a sentence lists
PRESETS = Path(__file__).parent / "presets"

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Core:
    """What is run, how long and where."""

    name: str = Field("", pattern=r"^[^/\\]*$", description="name of the run directory; empty: the preset's")
    workload: str = Field("digits", description="what is learned, see `fedlab list`")
    strategy: str = Field("dualadapt", description="how it is learned together, see `fedlab list`")
    rounds: int = Field(5, ge=1, description="federated rounds")
    seed: int = Field(0, ge=0, description="run seed; every random stream is named from it")
    clients: int = Field(0, ge=0, description="clients that take part; 0: one for each partition")
    min_clients: int = Field(0, ge=0, description="fewest clients that a phase needs, else the run stops; 0: all")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(2, ge=1, le=256, description="CPU threads of each process; part of what fixes the bits")
    engine: str = Field("inprocess", description="what carries the messages, see `fedlab list`")
    data_root: str = Field("", description="folder of full data sets; empty: $FEDLAB_DATA, else the embedded sets")
    reply_timeout: float = Field(600.0, gt=0, description="seconds without any reply after which clients are given up")
    deadline: float = Field(
        0.0, ge=0, description="seconds after which a phase ends without those who have not answered; 0: none"
    )
    reply_limit: float = Field(256.0, gt=0, description="largest reply of a client, in megabytes")
    norm_limit: float = Field(
        100.0, gt=0, description="largest norm of a client's arrays, in norms of what the server holds in their place"
    )
    wire: Literal["float32", "float16", "int8"] = Field(
        "float32", description="floats on the wire: as they are, in half precision, or matrices in 8 bits"
    )
    arrivals: str = Field("", description="clients that join late and in which round, as usps=3,optdigits=4")
    connect_timeout: float = Field(60.0, gt=0, description="seconds to wait until all clients are connected")
    score_every: int = Field(
        1, ge=1, description="rounds between two scores of a generative model's samples; the last round has one anyway"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept in the run directory")
    keep_start: bool = Field(False, description="keep the checkpoint before round 1 as well")
    pretrained: str = Field("", description="folder in which runs share their pre-training; empty: none")
    budget_bytes: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="bytes of training after which the run ends with its round; 0: none"
    )
    budget_seconds: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds of training after which the run ends with its round; bits depend on the machine; 0: none",
    )
    run_dir: str = Field("", description="absolute run directory; set by fedlab itself")
    folder: str = Field("", description="a client's own data; set on that client by `fedlab join --data`")


@dataclass(frozen=True)
class ServerTraining:
    """How the server trains on its labelled data; the same knobs, and the same batches, for every strategy."""

    pretrain_steps: int = Field(800, ge=0, description="steps on labelled source data before round 1")
    pretrain_learning_rate: Rate = Field(2e-3, description="largest step size of the one-cycle pre-training")
    steps: int = Field(48, ge=0, description="source steps a round (R_s)")
    batch: int = Field(128, ge=2, description="source examples a step")
    learning_rate: Rate = Field(1e-3, description="Adam's step size on the server")
    average: float = Field(0.98, ge=0.0, lt=1.0, description="decay a step of the averaged (EMA) model; 0: none")
    clip: Weight = Field(0.0, description="largest norm of a gradient in the steps of a round; 0: as it is")
    anneal: Share = Field(1.0, description="share of learning_rate that is left in the last round, by a cosine")


@dataclass(frozen=True)
class ClientTraining:
    """How a client trains on its own data between two messages."""

    steps: int = Field(200, ge=0, description="local steps a round (R_c)")
    batch: int = Field(256, ge=2, description="examples a step")
    learning_rate: Rate = Field(5e-3, description="first step size on the client")
    optimiser: Literal["sgd", "adam"] = Field(
        "sgd", description="of whole models on the client, fresh each round: SGD with momentum, or Adam"
    )
    clip: Weight = Field(0.0, description="largest norm of a gradient of whole models on the client; 0: as it is")
    anneal: Share = Field(
        1.0, description="share of whole models' learning_rate that is left in the last round, by a cosine"
    )
    average: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="decay a step of the averaged (EMA) whole model that a client sends; 0: the last",
    )


@dataclass(frozen=True)
class Ray:
    """Flower's simulation engine."""

    address: str = Field("", description="address of a Ray cluster to join; empty: start a private one")
    cpus: float = Field(1.0, gt=0, allow_inf_nan=False, description="CPUs reserved for each client")
    gpus: float = Field(0.0, ge=0, allow_inf_nan=False, description="share of a GPU reserved for each client")


@dataclass(frozen=True)
class Grpc:
    """Real clients over gRPC: where the server listens, and what it proves itself with."""

    address: str = Field("0.0.0.0:9092", description="host:port at which clients reach the server")
    certificates: str = Field("certs", description="folder of `fedlab certs`: the server's credentials, client keys")
    insecure: bool = Field(False, description="plain text, and clients that prove nothing")


CORE_SECTIONS: Mapping[str, type] = {
    "": Core,
    "server": ServerTraining,
    "client": ClientTraining,
    "ray": Ray,
    "grpc": Grpc,
}


@plain_dataclass(frozen=True)
class Knob:
    """One row of the table of knobs."""

    key: str
    default: Value
    description: str


def _fields(section: type) -> Mapping[str, Any]:
    return section.__pydantic_fields__  # type: ignore[attr-defined,no-any-return]


def _key(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name not in _fields(Core) else name


def knobs(sections: Mapping[str, type]) -> dict[str, Knob]:
    """Every knob of the given sections by its key, with default and description."""
    table: dict[str, Knob] = {}
    for prefix, section in sections.items():
        for name, field in _fields(section).items():
            key = _key(prefix, name)
            table.setdefault(key, Knob(key, field.default, field.description or ""))
    return table


def is_text(key: str, sections: Mapping[str, type]) -> bool:
    """Whether a knob holds free text: no number, no switch, and no choice of a few words."""
    found = {_key(prefix, name): field for prefix, cls in sections.items() for name, field in _fields(cls).items()}
    return key in found and found[key].annotation is str


def build(section: type[Section], prefix: str, flat: Flat) -> Section:
    """The section's knobs from a flat table, checked.

    Raises
    ------
    ConfigError
        When a value has a wrong type or is out of range; the sentence names the key, the value and what was expected.
    """
    values = {name: flat[key] for name in _fields(section) if (key := _key(prefix, name)) in flat}
    try:
        return TypeAdapter(section).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else prefix
        field = _fields(section).get(name)
        about = f" ({field.description})" if field and field.description else ""
        wanted = first["msg"][0].lower() + first["msg"][1:].removeprefix("Value error, ")
        raise ConfigError(f"knob {_key(prefix, name)!r}{about}: got {values.get(name)!r}; {wanted}") from None


def flatten(prefix: str, section: object) -> dict[str, Value]:
    """The inverse of :func:`build`."""
    return {_key(prefix, name): getattr(section, name) for name in _fields(type(section))}


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def read_preset(name: str) -> tuple[str, dict[str, Value]]:
    """Description and flat knobs of a preset, by name or by path of a TOML file.

    Raises
    ------
    ConfigError
        When there is no such preset or file, or the file is no TOML table of plain values.
    """
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise ConfigError(f"preset file {name!r} does not exist")
        raise ConfigError(f"unknown preset {name!r}; {suggest(name, preset_names())}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"preset {path} is not valid TOML: {error}") from None
    description = str(table.pop("description", ""))
    flat = dict(_flat_items(table, path))
    flat["name"] = flat.get("name") or path.stem
    return description, flat


def _flat_items(table: Mapping[str, Any], path: Path, prefix: str = "") -> Iterable[tuple[str, Value]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat_items(value, path, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield prefix + name, value
        else:
            raise ConfigError(
                f"preset {path}: {prefix + name!r} is a {type(value).__name__}; "
                "a knob is a bool, an int, a float or a string"
            )


def parse_overrides(items: Iterable[str]) -> dict[str, Value]:
    """``["rounds=3", "dualadapt.mixup=off"]`` as a table of strings, which :func:`build` turns into typed values."""
    overrides: dict[str, Value] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"{item!r} is no override; write key=value, for example rounds=3")
        overrides[key.strip()] = value.strip()
    return overrides


def parse_arrivals(text: str, names: Mapping[int, str]) -> dict[int, int]:
    """Partition to the round in which it joins, from ``usps=3,optdigits=4``.

    Raises
    ------
    ConfigError
        When an item is not ``client=round``, or names a client that the run does not have.
    """
    partition_of = {name: partition for partition, name in names.items()}
    found: dict[int, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (part.strip() for part in item.partition("="))
        if not number.isdigit() or int(number) < 1:
            raise ConfigError(f"knob 'arrivals': {item!r} is not client=round with a round from 1, for example usps=3")
        if name not in partition_of:
            raise ConfigError(f"knob 'arrivals': this run has no client {name!r}; {suggest(name, partition_of)}")
        found[partition_of[name]] = int(number)
    if found and len(found) == len(names):
        raise ConfigError("knob 'arrivals': every client joins late; at least one has to be there from the start")
    return found


def near_knob(key: str, known: Iterable[str], usable: Iterable[str] = ()) -> str:
    """Sentence tail naming the knob that may be meant, also one that was written without its section.

    Those in ``usable`` come first.
    """
    known = list(known)
    for names in (list(usable), known):
        same = [name for name in names if name.rpartition(".")[2] == key]
        if 1 <= len(same) <= NAMESAKES:
            return f"did you mean {' or '.join(map(repr, same))}?"
    return suggest(key, known)


def resolve(preset: Flat, overrides: Flat, sections: Mapping[str, type], chosen: Mapping[str, str]) -> dict[str, Value]:
    """Every knob of one run: defaults, then the preset, then the overrides.

    Parameters
    ----------
    sections
        Every section that exists, core ones included, by prefix.
    chosen
        Kind ("workload", "strategy") to the one in use: other workloads' and strategies' knobs stay out of the run.

    Raises
    ------
    ConfigError
        For an unknown knob (with the near match), one that belongs to something that is not in use, or a bad value.
    """
    active = {name: cls for name, cls in sections.items() if name in CORE_SECTIONS or name in chosen.values()}
    known, usable = knobs(sections), knobs(active)
    for source, table in (("preset", preset), ("command line", overrides)):
        for key in table:
            if key not in known:
                raise ConfigError(
                    f"unknown knob {key!r}; {near_knob(key, known, usable)} `fedlab list knobs` shows all"
                )
            if key not in usable and source == "command line":
                in_use = " and ".join(f"{kind} {name!r}" for kind, name in chosen.items())
                raise ConfigError(f"knob {key!r} has no effect in this run, which uses {in_use}")
    merged = {**preset, **overrides}
    merged["name"] = merged.get("name") or preset.get("name", "")
    resolved: dict[str, Value] = {}
    for prefix, section in active.items():
        resolved |= flatten(prefix, build(section, prefix, merged))
    return resolved


def to_toml(flat: Flat) -> str:
    """A flat table as TOML text with one table per section, readable by :func:`read_preset`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = value
    return tomli_w.dumps(nested)
