"""The trackers of a run, opened with what they are told about it."""

from __future__ import annotations

from collections.abc import Callable

from fedlab.config.schema import Config
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.trackers.opening import Trackers, tracker_names
from fedlab.trackers.tracker import RunFacts


def open_trackers(config: Config, directory: RunDirectory, after: int, note: Callable[[str], object]) -> Trackers:
    """Open the trackers of a run.

    Parameters
    ----------
    after
        Round of the checkpoint at which the run goes on; -1 at its start.
    note
        Called with a sentence when one of them is left out.

    Raises
    ------
    RunError
        When one cannot be opened.
    """
    run = config.run
    facts = RunFacts(
        directory.path,
        str(directory.manifest().get("id", "")),
        run.track_project,
        run.track_group,
        config.options(),
        after,
        len(config.clients),
    )
    with seeded(run.seed, "trackers"):  # whatever they draw
        return Trackers(tracker_names(run.track), facts, note)
