"""Account of noised releases: what they cost together, and whether another one fits the budget.

Costs are computed by Google's `dp-accounting`, which Flower's extra ``flwr[dp]`` installs. Gaussian releases of all
members compose to one Gaussian release, whose epsilon is exact. Where each release is of a secret random sample, Renyi
differential privacy gives a second upper bound, and the smaller one counts.

**Source**: Balle and Wang, Improving the Gaussian Mechanism, ICML 2018, theorem 8; Dong et al., Gaussian Differential
Privacy, 2022, corollary 3.3; Wang et al., Subsampled Renyi Differential Privacy, AISTATS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any, Literal

from fedlab.config.run_options import PrivacyConfig

Unit = Literal["client", "example"]  # what is protected: all of a client's data, or one example of it


@dataclass(frozen=True)
class Release:
    """One release through a Gaussian mechanism.

    Attributes
    ----------
    noise_multiplier
        Standard deviation of the noise, in units of the largest change that one member can make.
    sampled, population
        Size of the secret random sample that took part and of what it was drawn from; equal: all took part.
    """

    noise_multiplier: float
    sampled: int = 1
    population: int = 1


class PrivacyAccount:
    """Releases of a run so far, and their cost.

    Parameters
    ----------
    options
        Delta and budget.
    unit
        What the guarantee is for.
    release
        What every round releases.
    secret
        True if the noise is secret. If it is not, epsilon is what would hold if it were.
    """

    def __init__(self, options: PrivacyConfig, unit: Unit, release: Release, *, secret: bool) -> None:
        self.options, self.unit, self.release, self.secret = options, unit, release, secret
        self.releases: dict[Release, int] = {}

    def spend(self) -> None:
        """Add one release."""
        self.releases[self.release] = self.releases.get(self.release, 0) + 1

    @property
    def count(self) -> int:
        """Number of releases so far."""
        return sum(self.releases.values())

    def epsilon(self) -> float:
        """Return the epsilon of all releases at the account's delta; 0 without any."""
        return epsilon(self.releases, self.options.delta)

    def exhausted(self) -> str:
        """Return a sentence if one more release would exceed the budget; empty if it fits, or there is none."""
        limit = self.options.max_epsilon
        if not limit:
            return ""
        cost = epsilon({**self.releases, self.release: self.releases.get(self.release, 0) + 1}, self.options.delta)
        if cost <= limit:
            return ""
        return (
            f"one more release would bring epsilon to {cost:.4g} at delta {self.options.delta:g}, above the budget "
            f"dp.max_epsilon={limit:g}"
        )

    def record(self) -> dict[str, Any]:
        """Return the account for a round's record: plain JSON."""
        return {
            "epsilon": self.epsilon(),
            "delta": self.options.delta,
            "max_epsilon": self.options.max_epsilon,
            "unit": self.unit,
            "noise": "secret" if self.secret else "seeded",
            "releases": self.count,
        }

    def state(self) -> list[list[float]]:
        """Return the releases as rows of numbers, for a checkpoint."""
        return [[*astuple(release), count] for release, count in self.releases.items()]

    def restore(self, state: list[list[float]]) -> None:
        """Restore the releases, and with secret noise count one more.

        The round that was under way when the run stopped may have been released already, and noise that is drawn anew
        is another release of the same data. Seeded noise repeats the one that was made.
        """
        self.releases = {
            Release(z, int(sampled), int(population)): int(count) for z, sampled, population, count in state
        }
        if self.secret:
            self.spend()


def describe(record: Mapping[str, Any]) -> str:
    """Return in one sentence what a round's record says of privacy, for pages."""
    what = f"epsilon {record['epsilon']:.4g} at delta {record['delta']:g} for each {record['unit']}"
    if record["noise"] == "secret":
        return f"Differential privacy: {what}, with secret noise."
    return (
        f"Differential privacy: {what} is what this run would have with secret noise. Its noise comes from the run's "
        "seed, so that it can be repeated: it protects nobody."
    )


def epsilon(releases: Mapping[Release, int], delta: float) -> float:
    """Return the epsilon at ``delta`` of releases, each with its number; infinite if one is without noise."""
    if any(not release.noise_multiplier for release in releases):
        return math.inf
    return _epsilon(tuple(releases.items()), delta)


@cache
def _epsilon(releases: tuple[tuple[Release, int], ...], delta: float) -> float:
    if not releases:
        return 0.0
    import dp_accounting as dp  # a second to import, which no process without privacy has to wait

    together = sum(count / release.noise_multiplier**2 for release, count in releases) ** -0.5
    everybody = float(dp.get_epsilon_gaussian(together, delta))
    if all(release.sampled == release.population for release, _ in releases):
        return everybody
    sampled = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    for release, count in releases:
        # One member in the place of another can change a sum by twice what its absence can.
        gaussian = dp.GaussianDpEvent(release.noise_multiplier / 2)
        sampled.compose(dp.SampledWithoutReplacementDpEvent(release.population, release.sampled, gaussian), count)
    return min(everybody, float(sampled.get_epsilon(delta)))


@cache
def noise_multiplier(limit: float, delta: float, releases: int) -> float:
    """Return the smallest noise multiplier with which ``releases`` of all members cost at most epsilon ``limit``."""
    import dp_accounting as dp

    return float(dp.get_sigma_gaussian(limit, delta)) * math.sqrt(releases) * (1 + 1e-9)
