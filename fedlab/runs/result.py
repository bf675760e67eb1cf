"""The results of a run, read from its directory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedlab.config.presets import read_preset
from fedlab.errors import RunError
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable
from fedlab.runs.numerics import warn_of_different

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A finished, or at least begun, run.

    Attributes
    ----------
    directory
        The run directory.
    rounds
        The lines of ``metrics.jsonl``; round 0 is the model before the first round.
    manifest
        The facts of the run as a whole: status, versions, times, declared metrics and phases.
    config
        Every option by its key, as the run recorded them.
    """

    directory: Path
    rounds: list[dict[str, Any]]
    manifest: dict[str, Any]
    config: dict[str, bool | int | float | str]

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a run directory.

        Raises
        ------
        RunError
            When it is no run directory, or no round was written yet.
        """
        run = RunDirectory.open(path)
        rounds = run.rounds()
        if not rounds:
            raise RunError(f"{run.path} holds no finished round yet; `fedlab resume {run.path}` continues it")
        return cls(run.path, rounds, run.manifest(), read_preset(str(run.config_file))[1])

    @cached_property
    def metric_table(self) -> MetricTable:
        """The metrics and phases that the run's workload and strategy declare, from its manifest."""
        return MetricTable.from_manifest(self.manifest)

    @cached_property
    def metric_names(self) -> list[str]:
        """Names of the clients' metrics in the order of reading, without hidden ones."""
        return self.metric_table.sorted(client_metric_names(self.rounds))

    @property
    def tests_everybody(self) -> bool:
        """True if tests are of all clients, not of samples; False in a Flower app, which does not say."""
        return float(self.config.get("fraction_evaluate", 0.0)) == 1.0

    @property
    def weights_sha256(self) -> str:
        """Hash of everything trained; equal hashes mean equal bits. Empty while the run is not finished."""
        return str(self.manifest.get("weights_sha256", ""))

    def has_same_bits(self, other: Result) -> bool:
        """Return True if both runs are finished and ended at the same bits.

        Warns
        -----
        DifferentMachinesWarning
            When they did not, and were run with another processor, other libraries or other settings of these, which
            is reason enough.
        """
        same = bool(self.weights_sha256) and self.weights_sha256 == other.weights_sha256
        if not same:
            warn_of_different(self.manifest, other.manifest, "these runs were done")
        return same

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per round and client: ``round``, ``client``, then a column for each metric."""
        import pandas as pd

        rows = [
            {"round": record["round"], "client": client, **values}
            for record in self.rounds
            for client, values in record["clients"].items()
        ]
        first = ["round", "client", *self.metric_names]
        frame = pd.DataFrame(rows, columns=None if rows else first)  # a run may test no client
        return frame[[*first, *sorted(set(frame.columns) - set(first))]]

    def final(self) -> dict[str, dict[str, float]]:
        """Return client to its metrics after the last round: of the clients that were tested then, maybe none."""
        return dict(self.rounds[-1]["clients"])

    def bytes(self, kind: str) -> int:
        """Return the bytes of one kind (train_down, train_up, evaluate_down, evaluate_up), all clients and rounds."""
        return sum(client[kind] for record in self.rounds for client in record["bytes"].values())

    def score(self) -> dict[str, float]:
        """Return the global model's newest score; empty for a workload that has none."""
        return next((dict(record["score"]) for record in reversed(self.rounds) if record.get("score")), {})

    def seconds(self) -> dict[str, float]:
        """Return the seconds by phase over all rounds."""
        total: dict[str, float] = {}
        for record in self.rounds:
            for phase, value in record["seconds"].items():
                total[phase] = total.get(phase, 0.0) + value
        return total

    def __repr__(self) -> str:
        return f"<Result {self.directory.name}: round {self.rounds[-1]['round']}, {self.figures()}>"

    def figures(self, most: int | None = None) -> str:
        """Return the last round's mean of each metric of the clients, else the primary scores, in one line.

        Parameters
        ----------
        most
            1: only the metric that the run is judged by; None: all.
        """
        last, table = self.rounds[-1], self.metric_table
        found = {name: last["mean"][name] for name in self.metric_names if name in last["mean"]}
        found = found or {name: self.score()[name] for name in table.primary_scores(self.score())}
        chosen = [table.primary_metric(list(found))] if most == 1 and found else list(found)
        title = table.full_title if most == 1 else table.title
        return ", ".join(f"{title(name)} {table.format(name, found[name])}" for name in chosen)


def client_metric_names(rounds: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names of all that clients report in some rounds."""
    return {name for record in rounds for values in record["clients"].values() for name in values}


def server_metric_names(rounds: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the strategy's own metrics and of the workload's scores, sorted."""
    return sorted({name for record in rounds for kind in ("server", "score") for name in record.get(kind, {})})
