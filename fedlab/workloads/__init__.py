"""The table of workloads: one module per system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlab.config.schema import Core, Flat, build
from fedlab.errors import ConfigError, suggest
from fedlab.workload import Workload
from fedlab.workloads.camvid import CamVid
from fedlab.workloads.digits import Digits
from fedlab.workloads.fewshot import FewShot
from fedlab.workloads.generation import Generation
from fedlab.workloads.images import Images
from fedlab.workloads.molecules import Molecules
from fedlab.workloads.office import Office
from fedlab.workloads.pacs import Pacs

__all__ = ["WORKLOADS", "WorkloadSpec", "find", "make"]


@dataclass(frozen=True)
class WorkloadSpec:
    """One line of the table of workloads.

    Attributes
    ----------
    oracle_overrides
        Knobs with which clients have labels of their own to train on.
    primary_metric
        What comparisons are judged by, unless told otherwise: a family of the clients' metrics, or a metric of the
        server's score; "" for what runs report.
    """

    summary: str
    knobs: type[Workload]
    oracle_overrides: Flat = field(default_factory=dict)
    primary_metric: str = ""


WORKLOADS: Mapping[str, WorkloadSpec] = {
    "camvid": WorkloadSpec(
        "semantic segmentation of street views: labelled day drives on the server, others on clients",
        CamVid,
        oracle_overrides={"camvid.labelled": True},
        primary_metric="miou",
    ),
    "digits": WorkloadSpec(
        "digit domains: a labelled source on the server, unlabelled targets on the clients",
        Digits,
        oracle_overrides={"digits.setting": "oracle"},
        primary_metric="accuracy",
    ),
    "fewshot": WorkloadSpec(
        "few-shot transfer: labelled base classes on the server, unlabelled targets on the clients",
        FewShot,
        primary_metric="accuracy",
    ),
    "generation": WorkloadSpec(
        "digits to draw, without labels: a diffusion model or a score network", Generation, primary_metric="frechet"
    ),
    "images": WorkloadSpec(
        "images with classes (Omniglot, CIFAR-10): skewed shards of one set on the clients",
        Images,
        oracle_overrides={"images.labelled": True},
        primary_metric="accuracy",
    ),
    "molecules": WorkloadSpec(
        "molecular graphs to generate, without labels, shared out by scaffold, size or chance",
        Molecules,
        primary_metric="valid_unique_novel",
    ),
    "office": WorkloadSpec(
        "objects in four collections (Office-Caltech10, SURF): one labelled, three unlabelled",
        Office,
        oracle_overrides={"office.setting": "oracle"},
        primary_metric="accuracy",
    ),
    "pacs": WorkloadSpec(
        "things painted, drawn, photographed and sketched (PACS): one style labelled, three not",
        Pacs,
        oracle_overrides={"pacs.setting": "oracle"},
        primary_metric="accuracy",
    ),
}


def find(name: str) -> WorkloadSpec:
    """One line of the table.

    Raises
    ------
    ConfigError
        When there is no such workload, with the near match.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"unknown workload {name!r}; {suggest(name, WORKLOADS)}")
    return WORKLOADS[name]


def make(flat: Flat) -> Workload:
    """The workload named in a table of knobs, with its knobs checked."""
    core = build(Core, "", flat)
    return build(find(core.workload).knobs, core.workload, flat)
