"""Sampling of clients: which of them take part in a phase of a round, the same on every engine.

Clients are drawn by partition from a stream that is named by the run's seed, the phase and the round. So each engine
draws the same cohort, and a resumed run goes on with it. Only where privacy rests on the draw it is secret. A client
that is not connected is replaced by the next one of the draw.

**Source**: uniform sampling: McMahan et al., AISTATS 2017, algorithm 1; by numbers of examples, each update then
weighing the same: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, algorithm 1. Here a client
is drawn once at most (Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedlab.errors import ConfigError, plural, suggest
from fedlab.seeds import seed_of


@dataclass(frozen=True)
class Sampler:
    """Draws the clients of a phase.

    Attributes
    ----------
    seed
        Seed of the run.
    fraction
        Fraction of the clients in (0, 1].
    sizes
        Partition to number of examples, by which clients are drawn; empty: all alike.
    schedule
        Partitions of each round from round 1 on, in place of a draw; empty: none.
    only_connected
        Where all clients take part, those that are connected are all: no other is missed.
    secret
        True: who is drawn is known to the server alone, and comes from the operating system. A client that is not
        connected is then not replaced, so that the chance to be drawn is always the same.
    """

    seed: int
    fraction: float = 1.0
    sizes: Mapping[int, int] = field(default_factory=dict)
    schedule: Sequence[Sequence[int]] = ()
    only_connected: bool = False
    secret: bool = False

    def count(self, clients: int) -> int:
        """Return how many of so many clients take part.

        >>> Sampler(0, 0.1).count(1000), Sampler(0, 0.1).count(3)
        (100, 1)
        """
        return max(1, round(self.fraction * clients))

    def named(self, server_round: int) -> Collection[int] | None:
        """Return the partitions that the schedule names for a round, none after its last; None without a schedule.

        >>> Sampler(0, schedule=[[2], [0, 1]]).named(2), Sampler(0).named(2)
        ([0, 1], None)
        """
        return next(iter(self.schedule[server_round - 1 : server_round]), ()) if self.schedule else None

    def draw(
        self,
        phase: str,
        server_round: int,
        expected: Collection[int],
        connected: Collection[int],
        attempt: int = 0,
    ) -> set[int] | None:
        """Return the partitions that take part in a phase; None for all that are connected.

        Parameters
        ----------
        expected
            Partitions that may take part in this round.
        connected
            Those of them that are connected.
        attempt
            Number of the draw, where a phase is repeated because those of the draw before did not answer.
        """
        if self.schedule:
            return set(self.schedule[server_round - 1]) & set(connected)
        if self.fraction == 1.0:
            return set(connected) if self.only_connected else None
        names: list[str | int] = ["clients", phase, server_round, *([attempt] if attempt else [])]
        seed = secrets.randbits(128) if self.secret else seed_of(self.seed, *names)
        generator = np.random.default_rng(seed)
        partitions = np.array(sorted(expected))
        if self.sizes:
            sizes = np.array([self.sizes[partition] for partition in partitions])
            keys = -np.log(generator.random(len(partitions))) / sizes  # the smallest are a draw without replacement
            partitions = partitions[np.argsort(keys, kind="stable")]
        else:
            partitions = generator.permutation(partitions)
        present = set(connected)
        if self.secret:
            return present & set(partitions[: self.count(len(expected))].tolist())
        return set([one for one in partitions.tolist() if one in present][: self.count(len(expected))])


def read_schedule(path: str, names: Mapping[int, str], rounds: int) -> list[list[int]]:
    """Read which clients train in each round: one line a round, names or partition numbers separated by commas.

    Empty lines and lines that begin with # are skipped.

    Raises
    ------
    ConfigError
        When the file cannot be read or has fewer lines than the run has rounds, or when a line names no client or one
        that is not there.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"option 'schedule': {path} cannot be read: {error}") from None
    partition_of = {**{str(number): number for number in names}, **{name: number for number, name in names.items()}}
    found: list[list[int]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        clients = [part.strip() for part in line.split(",") if part.strip()]
        if not clients:
            raise ConfigError(
                f"option 'schedule': line {number} of {path} names no client; name one, or delete the line"
            )
        for client in clients:
            if client not in partition_of:
                raise ConfigError(
                    f"option 'schedule': line {number} of {path} names {client!r}, and this run has no such client; "
                    f"{suggest(client, partition_of)}"
                )
        found.append([partition_of[client] for client in clients])
    if len(found) < rounds:
        raise ConfigError(
            f"option 'schedule': {path} has {plural(len(found), 'round')}, and the run has {rounds}; add lines, or "
            "lower rounds"
        )
    return found
