"""Office-Caltech10: labeled histograms of one collection on the server, unlabeled ones of the others on the clients.

**Source and departures**: ``fedlab/data/images/office.py``.

**Metrics**: ``accuracy``, the fraction of test images whose largest logit is the label's; ``loss``, mean cross-entropy.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fedlab.data.images.domain_suites import DomainSuite
from fedlab.data.images.office import OFFICE, WORDS, drop_keypoints
from fedlab.models.histogram_mlp import HistogramNet
from fedlab.workload import WorkloadSpec
from fedlab.workloads.domain_suite import ACCURACY, DomainSuiteWorkload


@dataclass(frozen=True)
class Office(DomainSuiteWorkload):
    """The workload's options and its methods, see :class:`fedlab.workload.Workload`.

    Inputs (800,) are square roots of word frequencies.
    """

    of: ClassVar[DomainSuite] = OFFICE
    source_view = staticmethod(drop_keypoints)
    view_on_host: ClassVar[bool] = True  # binomial numbers would come from the GPU's own generator

    source: str = Field("caltech10", description="domain of the server, with labels")
    augment: bool = Field(True, description="random views of the source: a random part of each image's key points")

    def model(self) -> nn.Module:
        """Return a fresh network with ``features`` and ``head``."""
        return HistogramNet(len(OFFICE.classes), WORDS)


SPEC = WorkloadSpec(
    Office,
    oracle_overrides={"office.client_labels": True},
    primary_metric="accuracy",
    smooths_labels=True,
    metrics=(ACCURACY,),
)
