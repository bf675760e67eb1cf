"""A newcomer in the middle of a run: which known domain is nearest, and what its first head is.

A newcomer sends its mixture before anything else, in the feature space that the known clients' mixtures were fitted
in. The distance between two mixtures is MW2 (``fedlab.models.mixture_ops.mw2_distance``): optimal transport between
their components at
the 2-Wasserstein cost between Gaussians. It is a metric, it looks at where components lie and how wide they are, it
needs no sample, and two domains whose classes lie in the same places are near whatever their components' order. The
Kullback-Leibler divergence between mixtures has no closed form and explodes where they hardly overlap, as domains do
in 128 dimensions.

**Source**: Delon & Desolneux 2020, A Wasserstein-type distance in the space of Gaussian mixture models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedlab.models import gaussian_mixture, mixture_ops
from fedlab.seeds import seeded


@dataclass(frozen=True)
class Choice:
    """A newcomer's first head and why."""

    partition: int
    distances: Mapping[int, float]  # known partition -> MW2, nearest first
    taken: int | None  # the partition whose head it starts from; None: of no client

    def note(self, names: Mapping[int, str]) -> dict[str, object]:
        """For the round's record: the distances, and in words what was done."""
        listed = {names[partition]: round(value, 4) for partition, value in self.distances.items()}
        start = f"the head of {names[self.taken]}" if self.taken is not None else "no client's head"
        measured = ", ".join(f"{name} {value:.3g}" for name, value in listed.items())
        name = names[self.partition]
        return {
            "note": f"{name} is new; distances of its mixture (MW2): {measured}; it starts from {start}",
            "client": name,
            "distances": listed,
            "start": names[self.taken] if self.taken is not None else "",
        }


def rank(mixture: gaussian_mixture.GaussianMixture, known: Mapping[int, gaussian_mixture.GaussianMixture]) -> dict[int, float]:
    """Distance of a mixture to each known one by partition, nearest first; of equals the lower partition."""
    distances = {partition: mixture_ops.mw2_distance(mixture, other) for partition, other in sorted(known.items())}
    return dict(sorted(distances.items(), key=lambda item: item[1]))


def choose(start: str, partition: int, distances: Mapping[int, float], seed: int) -> Choice:
    """Whose head a newcomer starts from: the ``nearest`` client's, a ``random`` one's, or else nobody's."""
    taken = {"nearest": next(iter(distances), None)}
    if start == "random" and distances:
        with seeded(seed, "random start", partition):
            taken[start] = sorted(distances)[int(torch.randint(len(distances), ()))]
    return Choice(partition, distances, taken.get(start))
