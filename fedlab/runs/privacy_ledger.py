"""Ledger of a deployed client: what it has released with noise of its own in all runs, and what that has cost.

A server's account covers one run, and the client has to believe it. The ledger is the client's own: ``privacy.json`` in
its state directory survives restarts, adds up over runs and servers, and is written before anything is sent. With
``fedlab join --max-epsilon`` the client refuses a release that would exceed its owner's budget, and every run that asks
for data without secret noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.files import write_atomically
from fedlab.privacy.accounting import Release, epsilon

LEDGER = "privacy.json"
EPSILON_KEY = "max-epsilon"  # in the node's config
DELTA = 1e-5  # of the ledger: the owner's, since the server chooses that of its run


@dataclass(frozen=True)
class PrivacyLedger:
    """Releases of one client so far.

    Attributes
    ----------
    path
        File of the ledger.
    limit
        Largest epsilon at ``DELTA`` that the owner allows; 0: no limit.
    """

    path: Path
    limit: float = 0.0

    @classmethod
    def of_client(cls, state_dir: Path, node_config: Mapping[str, Any]) -> PrivacyLedger:
        """Return the ledger of a state directory, with the budget that the client was started with."""
        return cls(state_dir / LEDGER, float(node_config.get(EPSILON_KEY, 0)))

    def releases(self) -> dict[Release, int]:
        """Return all releases so far, each kind with its number.

        Raises
        ------
        ConfigError
            When the file is damaged: what was spent is then unknown.
        """
        if not self.path.exists():
            return {}
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))["releases"]
            return {Release.of_mapping(row): int(row["count"]) for row in rows}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{self.path} is damaged, so what this client has spent of its privacy is unknown; restore the file, "
                "or delete it to begin with nothing spent"
            ) from None

    def check(self, release: Release | None, config: Config, *, next_release: bool = True) -> None:
        """Refuse a run that the owner's budget does not allow; without a budget, allow any.

        Parameters
        ----------
        release
            What the client would release next; None: something without noise, if anything.
        next_release
            False: nothing is to be released now, as in a test, whose round may have spent the last of the budget.

        Raises
        ------
        ConfigError
            When the run asks for data without secret noise, or one more release would exceed the budget.
        """
        if not self.limit or config.plugins["strategy"].spec.upload == "nothing":
            return
        allowed = f"this client's owner allows epsilon {self.limit:g} at delta {DELTA:g} in all (`--max-epsilon`)"
        if release is None or not release.has_noise:
            raise ConfigError(
                f"{allowed}, and strategy {config.run.strategy!r} with the options of this run sends what it learns "
                "from the client's data without noise of the client's own; dualadapt.local_privacy=moments adds it"
            )
        if not config.secret_noise:
            raise ConfigError(f"{allowed}, and the noise of this run is not secret; dp.noise=secret makes it so")
        cost = self._cost(release) if next_release else 0.0
        if cost > self.limit:
            raise ConfigError(f"{allowed}, and one more release would bring it to {cost:.4g}")

    def spend(self, release: Release) -> float:
        """Write down one more release; return the epsilon of all of them."""
        cost, releases = self._cost(release), self.releases()
        releases[release] = releases.get(release, 0) + 1
        rows = [{**asdict(one), "count": count} for one, count in releases.items()]
        content = {"delta": DELTA, "epsilon": cost, "releases": rows}
        write_atomically(self.path, json.dumps(content, indent=2).encode() + b"\n")
        self.path.chmod(0o600)
        return cost

    def _cost(self, release: Release) -> float:
        """Return the epsilon of all releases and one more."""
        releases = self.releases()
        return epsilon({**releases, release: releases.get(release, 0) + 1}, DELTA)
