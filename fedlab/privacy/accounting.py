"""Account of noised releases: what they cost together, and whether another one fits the budget.

Costs are computed by Google's `dp-accounting`, which Flower's extra ``flwr[dp]`` installs. Gaussian releases of all
members compose to one Gaussian release, whose epsilon is exact. Where each release is of a secret random sample, Renyi
differential privacy gives a second upper bound, and the smaller one counts. Gradients of Poisson samples (DP-SGD) are
composed as distributions of the privacy loss, rounded up.

**Source**: Balle and Wang, Improving the Gaussian Mechanism, ICML 2018, theorem 8; Dong et al., Gaussian Differential
Privacy, 2022, corollary 3.3; Wang et al., Subsampled Renyi Differential Privacy, AISTATS 2019; Doroshenko et al.,
Connect the Dots: Tighter Discrete Approximations of Privacy Loss Distributions, PoPETs 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

from fedlab.config.run_options import PrivacyConfig
from fedlab.errors import ConfigError

LOSS_INTERVAL = 1e-3  # to which privacy losses are rounded up
PRECISION = 1e-3  # of a noise multiplier that is searched for
LEAST_NOISE, MOST_NOISE = 0.5, 1e4  # multipliers among which it is searched for

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
    steps, rate, gradient_noise
        Number of noised sums of gradients that are released besides; the probability with which each member takes part
        in one of them, in secret; and the noise multiplier of each.
    """

    noise_multiplier: float
    sampled: int = 1
    population: int = 1
    steps: int = 0
    rate: float = 1.0
    gradient_noise: float = 0.0

    @classmethod
    def of_mapping(cls, row: Mapping[str, Any]) -> Release:
        """Return a release from plain JSON; parts that it does not name have their defaults.

        Raises
        ------
        KeyError, TypeError, ValueError
            When it names no noise, or a part is no number.
        """
        counts = {name: int(row[name]) for name in ("sampled", "population", "steps") if name in row}
        return cls(
            float(row["noise_multiplier"]),
            **counts,
            rate=float(row.get("rate", 1.0)),
            gradient_noise=float(row.get("gradient_noise", 0.0)),
        )

    @property
    def has_noise(self) -> bool:
        """True if nothing is released without noise."""
        return bool(self.noise_multiplier and (self.gradient_noise or not self.steps))


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

    def state(self) -> list[dict[str, float]]:
        """Return the releases as plain JSON, for a checkpoint."""
        return [{**asdict(release), "count": count} for release, count in self.releases.items()]

    def restore(self, state: list[dict[str, float]]) -> None:
        """Restore the releases, and with secret noise count one more.

        The round that was under way when the run stopped may have been released already, and noise that is drawn anew
        is another release of the same data. Seeded noise repeats the one that was made.
        """
        self.releases = {Release.of_mapping(row): int(row["count"]) for row in state}
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
    if not all(release.has_noise for release in releases):
        return math.inf
    return _epsilon(tuple(releases.items()), delta)


@cache
def _epsilon(releases: tuple[tuple[Release, int], ...], delta: float) -> float:
    if not releases:
        return 0.0
    import dp_accounting as dp  # a second to import, which no process without privacy has to wait

    together = sum(count / release.noise_multiplier**2 for release, count in releases) ** -0.5
    everybody = float(dp.get_epsilon_gaussian(together, delta))
    if any(release.steps for release, _ in releases):
        lossy = dp.pld.PLDAccountant(value_discretization_interval=LOSS_INTERVAL)
        lossy.compose(dp.GaussianDpEvent(together))
        for release, count in ((one, count) for one, count in releases if one.steps):
            step = dp.PoissonSampledDpEvent(release.rate, dp.GaussianDpEvent(release.gradient_noise))
            lossy.compose(step, release.steps * count)
        return float(lossy.get_epsilon(delta))
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


@cache
def gradient_noise(limit: float, delta: float, releases: int, release: Release) -> float:
    """Return about the smallest noise of the gradients with which ``releases`` of ``release`` cost at most ``limit``.

    It is ``LEAST_NOISE`` at least.

    Raises
    ------
    ConfigError
        When the budget does not allow the rest of the release.
    """

    def fits(noise: float) -> bool:
        return epsilon({replace(release, gradient_noise=noise): releases}, delta) <= limit

    if not fits(MOST_NOISE):
        raise ConfigError(
            f"dp.max_epsilon={limit:g} is spent before any gradient; give less noise to it, or more epsilon"
        )
    least, most = LEAST_NOISE, 2 * LEAST_NOISE
    while not fits(most):
        least, most = most, 2 * most
    while most > least * (1 + PRECISION):
        middle = math.sqrt(least * most)
        least, most = (least, middle) if fits(middle) else (middle, most)
    return most
