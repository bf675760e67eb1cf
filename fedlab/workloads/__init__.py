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

__all__ = ["WORKLOADS", "Line", "find", "make"]


@dataclass(frozen=True)
class Line:
    """One line of the table of workloads.

    Attributes
    ----------
    labelled
        Knobs with which clients have labels of their own to train on.
    judged
        What comparisons are judged by, unless told otherwise: a family of the clients' metrics, or a metric of the
        server's score; "" for what runs report.
    """

    summary: str
    knobs: type[Workload]
    labelled: Flat = field(default_factory=dict)
    judged: str = ""


WORKLOADS: Mapping[str, Line] = {
    "camvid": Line(
        "semantic segmentation of street views: labelled day drives on the server, others on clients",
        CamVid,
        labelled={"camvid.labelled": True},
        judged="miou",
    ),
    "digits": Line(
        "digit domains: a labelled source on the server, unlabelled targets on the clients",
        Digits,
        labelled={"digits.setting": "oracle"},
        judged="accuracy",
    ),
    "fewshot": Line(
        "few-shot transfer: labelled base classes on the server, unlabelled targets on the clients",
        FewShot,
        judged="accuracy",
    ),
    "generation": Line(
        "digits to draw, without labels: a diffusion model or a score network", Generation, judged="frechet"
    ),
    "images": Line(
        "images with classes (Omniglot, CIFAR-10): skewed shards of one set on the clients",
        Images,
        labelled={"images.labelled": True},
        judged="accuracy",
    ),
    "molecules": Line(
        "molecular graphs to generate, without labels, shared out by scaffold, size or chance",
        Molecules,
        judged="valid_unique_novel",
    ),
    "office": Line(
        "objects in four collections (Office-Caltech10, SURF): one labelled, three unlabelled",
        Office,
        labelled={"office.setting": "oracle"},
        judged="accuracy",
    ),
    "pacs": Line(
        "things painted, drawn, photographed and sketched (PACS): one style labelled, three not",
        Pacs,
        labelled={"pacs.setting": "oracle"},
        judged="accuracy",
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
        raise ConfigError(f"unknown workload {name!r}; {suggest(name, WORKLOADS)}")
    return WORKLOADS[name]


def make(flat: Flat) -> Workload:
    """The workload named in a table of knobs, with its knobs checked."""
    core = build(Core, "", flat)
    return build(find(core.workload).knobs, core.workload, flat)
