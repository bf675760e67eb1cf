"""Early stopping: once the metric that a run is judged by has not improved for some tests, the next round is the last.

It looks at what is measured anyway, after each round that has a test, so the bits of a round do not depend on it. A
last round follows, which says to strategy and clients that it is the last, so that the run ends as any other does: a
client adapts, and everything is tested.

Clients that did not answer a test change its mean and not the model: two tests are compared over the clients that both
have, unless most of them are others, as where clients are sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from fedlab.config.run_options import StopConfig
from fedlab.errors import ConfigError, plural, suggest
from fedlab.runs.metrics import MetricTable, mean_over


class EarlyStop:
    """The best value of a metric so far, and the tests since then.

    Parameters
    ----------
    options
        The metric, as a name or a group, and the patience; without a metric nothing ever ends.
    table
        Declared metrics, with the direction that is better.

    Attributes
    ----------
    best, best_round
        Best value and its round; None before the first test.
    waited
        Tests since then.
    ended_in
        Round whose test was one too many; None as long as there is none.
    """

    def __init__(self, options: StopConfig, table: MetricTable) -> None:
        self.options, self.table = options, table
        self.best: float | None = None
        self.best_round: int | None = None
        self.waited = 0
        self.ended_in: int | None = None
        self._best_clients: dict[str, dict[str, float]] = {}  # the metric of each client in the best round

    def is_last(self, server_round: int) -> bool:
        """Return True for the round after the metric had not improved in ``patience`` tests, and any later one."""
        return self.ended_in is not None and server_round > self.ended_in

    def restore(self, rounds: Iterable[Mapping[str, Any]], evaluate_every: int) -> None:
        """Add the recorded rounds of a run that is resumed.

        A round that was tested only because it was to be the last counts for nothing: the run goes on as one that was
        meant to be this long from the beginning.
        """
        for record in rounds:
            if record["round"] % evaluate_every == 0:
                self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a round's record; one without a test counts for nothing.

        Raises
        ------
        ConfigError
            When a round's test has no such metric, or it is not known whether more or less of it is better.
        """
        measured = {**record["score"], **record["mean"]}
        name = self._name(measured)
        if not self.options.metric or not measured or (not name and not record["round"]):
            return  # a strategy may report its metrics from round 1 on
        if not name:
            known = suggest(self.options.metric, {*measured, *map(self.table.group, measured)})
            raise ConfigError(f"option 'stop.metric': no test measures {self.options.metric!r}; {known}")
        direction = self.table.direction(name)
        if not direction:
            raise ConfigError(
                f"option 'stop.metric': whether more or less {name} is better is not known, so no round is the best"
            )
        own = record.get("clients", {}) if name in record["mean"] else {}
        clients = {client: {name: metrics[name]} for client, metrics in own.items() if name in metrics}
        if direction * self._gain(name, float(measured[name]), clients) > 0:
            self.best, self.best_round, self.waited = float(measured[name]), int(record["round"]), 0
            self._best_clients = clients
        else:
            self.waited += 1
            if self.waited == self.options.patience and self.ended_in is None:
                self.ended_in = int(record["round"])

    def _gain(self, name: str, value: float, clients: Mapping[str, Mapping[str, float]]) -> float:
        """Return a test's value less the best one; over the clients of both, where these are half of each at least.

        A first value is an infinite gain, and one that is not finite is none: nothing would ever be better.
        """
        direction = self.table.direction(name)
        if not math.isfinite(value):
            return math.nan
        if self.best is None:
            return direction * math.inf
        both = [client for client in clients if name in self._best_clients.get(client, {})]
        sizes = len(clients), len(self._best_clients)
        if len(both) == max(sizes) or 2 * len(both) < max(sizes):  # the same clients, or others for the most part
            return value - self.best
        now, then = ({client: of[client] for client in both} for of in (clients, self._best_clients))
        return mean_over(now)[name] - mean_over(then)[name]

    def _name(self, measured: Mapping[str, float]) -> str:
        """Return the metric that is meant: that of this name, or the best informed one of this group."""
        if self.options.metric in measured:
            return self.options.metric
        return self.table.primary_metric([name for name in measured if self.table.group(name) == self.options.metric])

    def message(self, server_round: int) -> str:
        """Return a sentence that says why the run ends."""
        name = self.options.metric
        best = "it was never a finite number"
        if self.best is not None:
            best = f"the best is {self.table.format(name, self.best)} in round {self.best_round}"
        return (
            f"the run ends with round {server_round}: {name} had not improved in "
            f"{plural(self.options.patience, 'test')} up to "
            f"round {self.ended_in}; {best}"
        )
