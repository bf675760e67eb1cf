"""What a run found, read from its directory: for a table, a notebook or a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.config.presets import read_preset
from fedlab.errors import RunError
from fedlab.runs.directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd

# Kinds of metrics that are shares where more is better; a strategy's own names begin with one: "miou_average".
FAMILIES = ("accuracy", "miou")
# Shares of a generative model's samples: more is better; and what is better when it is less, by name or beginning.
SHARES = frozenset({"validity", "uniqueness", "novelty", "valid_unique_novel", "reconstruction", "precision", "recall"})
LESS = ("loss", "nll", "bits", "frechet", "inception_frechet", "distance_", "wasserstein_", "label_")
# Which predictor a metric is of, in the order in which a reader wants to see them; "" is a family's plain name. What
# is not named here comes after these, by name.
PREDICTORS = ("source_only", "global", "local", "average", "", "1-shot", "5-shot", "20-shot")
HIDDEN = frozenset({"num-examples"})
TESTING = frozenset({"evaluate", "score"})  # phases whose seconds belong to the table and not to the method


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
        What is known of the run as a whole.
    config
        Every option by its key, as the run recorded them.
    """

    directory: Path
    rounds: list[dict[str, Any]]
    manifest: dict[str, Any]
    config: dict[str, bool | int | float | str]

    @classmethod
    def read(cls, path: Path | str) -> Result:
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

    @property
    def weights_sha256(self) -> str:
        """Hash of everything trained; equal hashes mean equal bits. Empty while the run is not finished."""
        return str(self.manifest.get("weights_sha256", ""))

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per round and client: ``round``, ``client``, then a column for each metric."""
        import pandas as pd

        rows = [
            {"round": record["round"], "client": client, **values}
            for record in self.rounds
            for client, values in record["clients"].items()
        ]
        frame = pd.DataFrame(rows)
        return frame[["round", "client", *metric_names(self.rounds), *sorted(HIDDEN & set(frame.columns))]]

    def final(self) -> dict[str, dict[str, float]]:
        """Client to its metrics after the last round."""
        return dict(self.rounds[-1]["clients"])

    def bytes(self, kind: str) -> int:
        """Bytes of one kind (train_down, train_up, evaluate_down, evaluate_up) over all clients and rounds."""
        return sum(client[kind] for record in self.rounds for client in record["bytes"].values())

    def score(self) -> dict[str, float]:
        """The global model's newest score; empty for a workload that has none."""
        return next((dict(record["score"]) for record in reversed(self.rounds) if record.get("score")), {})

    def seconds(self) -> dict[str, float]:
        """Seconds by phase over all rounds."""
        total: dict[str, float] = {}
        for record in self.rounds:
            for phase, value in record["seconds"].items():
                total[phase] = total.get(phase, 0.0) + value
        return total

    def __repr__(self) -> str:
        last = self.rounds[-1]
        means = ", ".join(
            f"{label(name)} {shown(name, last['mean'][name])}"
            for name in metric_names(self.rounds)
            if name in last["mean"]
        )
        return f"<Result {self.directory.name}: round {last['round']}, {means}>"


def family(name: str) -> str:
    """The kind of a metric: "miou" of "miou_average"; of one that belongs to no family, its own name."""
    found = [kind for kind in FAMILIES if name == kind or name.startswith(f"{kind}_")]
    return found[0] if found else name


def is_share(name: str) -> bool:
    """Whether a metric is a share, of which more is better."""
    return family(name) in FAMILIES or name in SHARES


def direction(name: str) -> int:
    """1 where more of a metric is better, -1 where less is, 0 where that is not known."""
    return 1 if is_share(name) else -1 if name.startswith(LESS) else 0


def predictor(name: str) -> str:
    """What predicts, of a metric with a family: "average" of "miou_average"."""
    return name.removeprefix(family(name)).removeprefix("_")


def _place(name: str) -> tuple[int, int, str]:
    """Where a metric stands in a list."""
    if family(name) not in FAMILIES or predictor(name) not in PREDICTORS:
        return len(FAMILIES), 0, name
    return FAMILIES.index(family(name)), PREDICTORS.index(predictor(name)), name


def metric_names(rounds: list[dict[str, Any]]) -> list[str]:
    """Names of the clients' metrics, in the order in which a reader wants them."""
    names = {name for record in rounds for values in record["clients"].values() for name in values} - HIDDEN
    return sorted(names, key=_place)


def headline(names: list[str]) -> str:
    """The one metric that a short line shows: the best informed share there is, else the first; "" for none."""
    ranked = [name for name in names if _place(name)[0] < len(FAMILIES)]
    first = min((_place(name)[0] for name in ranked), default=0)
    return max((name for name in ranked if _place(name)[0] == first), key=_place, default=next(iter(names), ""))


def label(name: str) -> str:
    """A metric's name for people: ``accuracy_source_only`` is "source only"."""
    return (predictor(name) if is_share(name) and predictor(name) else name).replace("_", " ")


def shown(name: str, value: float) -> str:
    """A metric's value for people: shares in percent, intervals in points of them."""
    if name.startswith("interval"):
        return f"± {100 * value:.1f}"
    return f"{100 * value:.1f} %" if is_share(name) else f"{value:.4g}"


def server_names(rounds: list[dict[str, Any]]) -> list[str]:
    """Names of what the server found out about the global model, strategy's metrics and workload's scores, by name."""
    return sorted({name for record in rounds for kind in ("server", "score") for name in record.get(kind, {})})


def foremost(score: Mapping[str, float]) -> list[str]:
    """Of a score, the names for a short line: shares, and those whose direction is known by their whole name."""
    return [name for name in score if is_share(name) or name in LESS]


def human_bytes(count: float) -> str:
    """A number of bytes for people, in decimal units.

    >>> human_bytes(1_234_567)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 999.95:  # what would round to 1000 is the next unit's
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
