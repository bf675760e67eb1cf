"""Onboarding of late joiners: which known client is nearest, and which head to start from.

A late joiner sends its mixture before anything else, in the feature space in which the known clients' mixtures were
fitted. The distance between two mixtures is MW2 (``fedlab.models.mixture_ops.mw2_distance``): optimal transport
between their components with the 2-Wasserstein cost between Gaussians. It is a metric, depends on the means and
covariances of the components but not on their order, and needs no sample. The Kullback-Leibler divergence between
mixtures has no closed form, and diverges where they hardly overlap, as domains do in 128 dimensions.

**Source**: Delon & Desolneux 2020, A Wasserstein-type distance in the space of Gaussian mixture models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedlab.models import gaussian_mixture, mixture_ops
from fedlab.seeds import seeded
from fedlab.strategies.dualadapt.shared import CHOSEN_BY_CLIENT


@dataclass(frozen=True)
class Choice:
    """The initial head of a late joiner, and the distances behind the choice."""

    partition: int
    distances: Mapping[int, float]  # known partition -> MW2, nearest first
    taken: int | None  # the partition whose head it starts from; None: no client's
    own: bool = False  # True if the late joiner made or chose its head itself

    def event(self, names: Mapping[int, str]) -> dict[str, object]:
        """Return the event for the round's record: distances by client, and a sentence."""
        listed = {names[partition]: round(value, 4) for partition, value in self.distances.items()}
        start = f"the head of {names[self.taken]}" if self.taken is not None else "no client's head"
        start = "a head of its own choice" if self.own else start
        measured = ", ".join(f"{name} {value:.3g}" for name, value in listed.items())
        name = names[self.partition]
        return {
            "note": f"{name} joined late; distances of its mixture (MW2): {measured}; it starts from {start}",
            "client": name,
            "distances": listed,
            "start": names[self.taken] if self.taken is not None else "",
        }


def rank(
    mixture: gaussian_mixture.GaussianMixture, known: Mapping[int, gaussian_mixture.GaussianMixture]
) -> dict[int, float]:
    """Return the distance of a mixture to each known one by partition, nearest first; ties by partition."""
    distances = {partition: mixture_ops.mw2_distance(mixture, other) for partition, other in sorted(known.items())}
    return dict(sorted(distances.items(), key=lambda item: item[1]))


def choose(start: str, partition: int, distances: Mapping[int, float], seed: int) -> Choice:
    """Choose the initial head of a late joiner: the ``nearest`` client's, a ``random`` one's, or else no client's."""
    taken = {"nearest": next(iter(distances), None)}
    if start == "random" and distances:
        with seeded(seed, "random start", partition):
            taken[start] = sorted(distances)[int(torch.randint(len(distances), ()))]
    return Choice(partition, distances, taken.get(start), start in CHOSEN_BY_CLIENT)
