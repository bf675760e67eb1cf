"""The trackers of a run: found by name, told of each round, and left out when one fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from fedlab.config.sections import split_names
from fedlab.errors import ConfigError, RunError, suggest
from fedlab.exits import exits_as_errors
from fedlab.references import load_reference
from fedlab.trackers.tracker import RunFacts, Scalars, Tracker

Note = Callable[[str], object]

TENSORBOARD = "fedlab.trackers.tensorboard:TensorBoard"


@dataclass(frozen=True)
class TrackerRow:
    """One tracker.

    Attributes
    ----------
    path
        Its class as ``module:Name``.
    package
        The package that it needs.
    variables
        Beginning of the names of its environment variables.
    remedy
        What to do when it cannot begin.
    """

    path: str
    package: str
    variables: str
    remedy: str


TRACKERS: Mapping[str, TrackerRow] = {
    "mlflow": TrackerRow("fedlab.trackers.mlflow:MLflow", "mlflow", "MLFLOW_", "check MLFLOW_TRACKING_URI"),
    "wandb": TrackerRow(
        "fedlab.trackers.wandb:WeightsAndBiases", "wandb", "WANDB_", "log in (`wandb login`), or set WANDB_MODE=offline"
    ),
}


def tracker_names(text: str) -> list[str]:
    """Return the names in ``track``, for instance of "wandb,mlflow".

    Raises
    ------
    ConfigError
        When there is none, one is unknown, or its package is not installed, with the command that installs it.
    """
    names = list(dict.fromkeys(split_names("track", text)))
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"option 'track': there is no tracker {name!r}; {suggest(name, TRACKERS)}")
        row = TRACKERS[name]
        if find_spec(row.package) is None:
            raise ConfigError(
                f"option 'track': {name!r} needs {row.package}, which is not installed; `pip install "
                f"'fedlab-adapt[{name}]'`, or leave it out: TensorBoard's files are always written"
            )
    return names


class Trackers:
    """All trackers of a run, as a context: TensorBoard's files, and those of ``track``.

    One of ``track`` that raises after it was opened is left out from then on, with a note; the run goes on.

    Parameters
    ----------
    names
        As of :func:`tracker_names`.
    note
        Called with such a sentence.

    Raises
    ------
    RunError
        When one cannot be opened, with what it says.
    """

    def __init__(self, names: Sequence[str], run: RunFacts, note: Note) -> None:
        self.scalars, self.note = Scalars(run.clients), note
        self.board: Tracker = load_reference(TENSORBOARD)(run)
        self.open: dict[str, Tracker] = {}
        for name in names:
            try:
                with exits_as_errors():
                    self.open[name] = load_reference(TRACKERS[name].path)(run)
            except Exception as error:
                self._close(failed=True)
                raise RunError(
                    f"option 'track': {name} could not begin ({_first_line(error)}); {TRACKERS[name].remedy}, or leave "
                    "it out: TensorBoard's files are always written"
                ) from error

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(failed=error is not None)

    def add(self, record: Mapping[str, Any]) -> None:
        """Log one line of ``metrics.jsonl``.

        Raises
        ------
        OSError
            When TensorBoard's files cannot be written.
        """
        scalars = self.scalars(record)
        self.board.add(record["round"], scalars)
        for name, tracker in list(self.open.items()):
            try:
                with exits_as_errors():
                    tracker.add(record["round"], scalars)
            except Exception as error:
                del self.open[name]
                self.note(f"{name} is left out from here on, and the run goes on: {_first_line(error)}")
                with suppress(Exception), exits_as_errors():
                    tracker.close(failed=True)

    def _close(self, failed: bool) -> None:
        try:
            self.board.close(failed)
        finally:
            for name, tracker in self.open.items():
                try:
                    with exits_as_errors():
                        tracker.close(failed)
                except Exception as error:
                    self.note(f"{name} may lack the end of the run: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
