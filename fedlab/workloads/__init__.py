"""The table of workloads: one module per system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedlab.config import Core, Flat, build
from fedlab.errors import ConfigError, near_match
from fedlab.workload import Workload
from fedlab.workloads.digits import Digits
from fedlab.workloads.fewshot import FewShot
from fedlab.workloads.generation import Generation
from fedlab.workloads.molecules import Molecules

__all__ = ["WORKLOADS", "Line", "find", "make"]


@dataclass(frozen=True)
class Line:
    """One line of the table of workloads."""

    summary: str
    knobs: type[Workload]


WORKLOADS: Mapping[str, Line] = {
    "digits": Line("digit domains: a labelled source on the server, unlabelled targets on the clients", Digits),
    "fewshot": Line(
        "few-shot transfer: labelled base classes on the server, unlabelled targets on the clients", FewShot
    ),
    "generation": Line("digits to draw, without labels: a diffusion model or a score network", Generation),
    "molecules": Line(
        "molecular graphs to generate, without labels, shared out by scaffold, size or chance", Molecules
    ),
}


def find(name: str) -> Line:
    """One line of the table.

    Raises
    ------
    ConfigError
        When there is no such workload, with the near match.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"unknown workload {name!r}; {near_match(name, WORKLOADS)}")
    return WORKLOADS[name]


def make(flat: Flat) -> Workload:
    """The workload named in a table of knobs, with its knobs checked."""
    core = build(Core, "", flat)
    return build(find(core.workload).knobs, core.workload, flat)
