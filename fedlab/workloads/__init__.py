"""The table of workloads: one module per system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedlab.config.schema import Core, Flat, build
from fedlab.errors import ConfigError, near_match
from fedlab.metrics import FRACTION, Metric, Phase
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
    metrics, phases
        Declarations of what the workload reports and of the phases that it names, see :mod:`fedlab.metrics`.
    """

    summary: str
    knobs: type[Workload]
    labelled: Flat = field(default_factory=dict)
    judged: str = ""
    metrics: tuple[Metric, ...] = ()
    phases: tuple[Phase, ...] = ()


ACCURACY = Metric("accuracy", unit=FRACTION, higher_is_better=True, confusion="accuracy")
EPISODES = (
    ACCURACY,
    Metric("interval", unit=FRACTION, order=1, role="margin"),
    Metric("*_*-shot"),
)
IMAGE_QUALITY = (
    Metric("frechet", "Fréchet distance", higher_is_better=False, order=1),
    Metric("inception_frechet", "Fréchet inception distance", higher_is_better=False, order=2),
    Metric("precision", unit=FRACTION, higher_is_better=True, order=3),
    Metric("recall", unit=FRACTION, higher_is_better=True, order=4),
    Metric("label_*", higher_is_better=False, order=5),
    Metric("*_real", "real data", role="reference"),
)
MOLECULES = (
    Metric("samples", role="hidden"),
    Metric("valid", "valid molecules", order=9),
    Metric("valid_unique_novel", "valid, unique and novel", FRACTION, higher_is_better=True, order=1),
    Metric("validity", unit=FRACTION, higher_is_better=True, order=2),
    Metric("uniqueness", unit=FRACTION, higher_is_better=True, order=3),
    Metric("novelty", unit=FRACTION, higher_is_better=True, order=4),
    Metric("rebuilt", "rebuilt from latents", FRACTION, higher_is_better=True, order=5),
    Metric("frechet", "Fréchet distance", higher_is_better=False, order=6),
    Metric("nll", "negative log-likelihood", higher_is_better=False, order=7),
    Metric("distance_*", higher_is_better=False, order=8),
    Metric("wasserstein_*", higher_is_better=False, order=8),
)

WORKLOADS: Mapping[str, Line] = {
    "camvid": Line(
        "semantic segmentation of street views: labelled day drives on the server, others on clients",
        CamVid,
        labelled={"camvid.labelled": True},
        judged="miou",
        metrics=(Metric("miou", "mean IoU", FRACTION, higher_is_better=True, confusion="mean_iou"),),
    ),
    "digits": Line(
        "digit domains: a labelled source on the server, unlabelled targets on the clients",
        Digits,
        labelled={"digits.setting": "oracle"},
        judged="accuracy",
        metrics=(ACCURACY,),
    ),
    "fewshot": Line(
        "few-shot transfer: labelled base classes on the server, unlabelled targets on the clients",
        FewShot,
        judged="accuracy",
        metrics=EPISODES,
    ),
    "generation": Line(
        "digits to draw, without labels: a diffusion model or a score network",
        Generation,
        judged="frechet",
        metrics=IMAGE_QUALITY,
        phases=(Phase("samples", "samples are drawn"),),
    ),
    "images": Line(
        "images with classes (Omniglot, CIFAR-10): skewed shards of one set on the clients",
        Images,
        labelled={"images.labelled": True},
        judged="accuracy",
        metrics=(ACCURACY,),
    ),
    "molecules": Line(
        "molecular graphs to generate, without labels, shared out by scaffold, size or chance",
        Molecules,
        judged="valid_unique_novel",
        metrics=MOLECULES,
    ),
    "office": Line(
        "objects in four collections (Office-Caltech10, SURF): one labelled, three unlabelled",
        Office,
        labelled={"office.setting": "oracle"},
        judged="accuracy",
        metrics=(ACCURACY,),
    ),
    "pacs": Line(
        "things painted, drawn, photographed and sketched (PACS): one style labelled, three not",
        Pacs,
        labelled={"pacs.setting": "oracle"},
        judged="accuracy",
        metrics=(ACCURACY,),
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
