"""Types of adaptation on the client: input and result of a method, and its entry in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.metrics import Metric
from fedlab.training import Progress, null_progress


@dataclass(frozen=True)
class Client:
    """A client's model and unlabeled data.

    Attributes
    ----------
    features, head
        G and F: inputs (batch, ...) to features (batch, width), and these to logits (batch, classes). They are only
        read.
    data
        Examples, of which a method reads inputs ``x`` and nothing else.
    view, weak_view
        Return a random view of each input (batch, ...), of the same shape; a weak one changes it less.
    device
        Where G and F are.
    progress
        Reports steps: phase, steps done, steps in all.
    cuda_graphs
        Compute the loss of a step as a CUDA graph on a GPU (:class:`fedlab.cuda_graphs.GraphedLoss`).
    """

    features: nn.Module
    head: nn.Module
    data: ArrayDataset
    view: Callable[[Tensor], Tensor]
    weak_view: Callable[[Tensor], Tensor]
    device: torch.device
    progress: Progress = null_progress
    cuda_graphs: bool = False

    def trainable_features(self) -> nn.Module:
        """Return a copy of G whose weights get gradients."""
        return deepcopy(self.features).requires_grad_(True)

    def frozen_head(self) -> nn.Module:
        """Return a copy of F in evaluation mode whose weights get none."""
        return deepcopy(self.head).requires_grad_(False).eval()

    def inputs(self, rows: Tensor) -> Tensor:
        """Return the inputs ``x`` of some examples (rows, ...) on the device."""
        return self.data[rows]["x"].to(self.device)

    def view_of(self, rows: Tensor) -> Tensor:
        """Return a random view of some examples (rows, ...) on the device."""
        return self.view(self.data[rows]["x"]).to(self.device)

    def weak_view_of(self, rows: Tensor) -> Tensor:
        """Return a random weak view of some examples (rows, ...) on the device."""
        return self.weak_view(self.data[rows]["x"]).to(self.device)


@dataclass(frozen=True)
class Adapted:
    """Result of a method: a client's new G.

    Attributes
    ----------
    features
        The new G, in evaluation mode.
    report
        Numbers by name that need no label.
    """

    features: nn.Module
    report: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdaptationSpec:
    """Entry of a method in the registry.

    Attributes
    ----------
    options
        Dataclass of its options, as they appear under its name in a preset.
    adapt
        Trains a copy of a client's G, on torch's current random stream.
    metrics
        Declarations of what it reports, see :mod:`fedlab.metrics`.
    name
        Prefix of its options where it is named by import path; empty: the module's name.
    """

    options: type
    adapt: Callable[[Client, Any], Adapted]
    metrics: tuple[Metric, ...] = ()
    name: str = ""


def spec_of(found: object, what: str) -> AdaptationSpec:
    """Return the spec that the registry found, or refuse what is none.

    Raises
    ------
    ConfigError
        When it is no AdaptationSpec.
    """
    if not isinstance(found, AdaptationSpec):
        raise ConfigError(f"{what} is a {type(found).__name__}; an AdaptationSpec is expected")
    return found
