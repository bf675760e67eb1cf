"""A run's metrics in MLflow, at ``MLFLOW_TRACKING_URI``; else in ``mlflow.db`` beside the run directory.

Options are parameters, cut to the length that every store takes; no weights and no data are logged. A resumed run goes
on where it was: rounds that were logged before a kill are not logged again.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from fedlab.files import directory_lock
from fedlab.trackers.tracker import RunFacts

ID, ROUND, GROUP, NAME = "fedlab.id", "fedlab.round", "fedlab.group", "mlflow.runName"  # tags
AT_ONCE, MAX_LENGTH = 100, 500  # parameters of a call, and characters of one, that every store takes
LOGGERS = ("mlflow.store", "alembic")  # that tell of every table that a new database gets
NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")


class MLflow:
    """A run of an experiment, tagged with its comparison."""

    def __init__(self, run: RunFacts) -> None:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        folder = run.directory.parent
        with directory_lock(folder, wait=True, name="mlflow.lock"):  # cells that begin at once make one database
            self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}")
            self._begin(run)

    def _begin(self, run: RunFacts) -> None:
        """Find the run in its experiment, or create both."""
        found = self.client.get_experiment_by_name(run.project)
        experiment = found.experiment_id if found else self.client.create_experiment(run.project)
        known = self.client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        if known:
            self.run_id, self.done = known[0].info.run_id, int(known[0].data.tags.get(ROUND, -1))
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(experiment, tags={ID: run.id, GROUP: run.group}).info.run_id
        self.client.set_tag(self.run_id, NAME, run.directory.name)
        self.done = -1
        params = [Param(key, str(value)[:MAX_LENGTH]) for key, value in run.options.items()]
        for start in range(0, len(params), AT_ONCE):
            self.client.log_batch(self.run_id, params=params[start : start + AT_ONCE])

    def add(self, server_round: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers of a round, once."""
        if server_round <= self.done:
            return
        now = int(1000 * time.time())
        metrics = [
            Metric(NOT_IN_A_NAME.sub("_", name), float(value), now, server_round) for name, value in scalars.items()
        ]
        self.client.log_batch(self.run_id, metrics=metrics, tags=[RunTag(ROUND, str(server_round))])
        self.done = server_round

    def close(self, failed: bool) -> None:
        """Record how the run ended."""
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
