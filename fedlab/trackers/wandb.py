"""A run's metrics at Weights & Biases; offline where ``WANDB_MODE=offline``, into the run directory.

Options and metrics are sent, no weights and no data. A resumed run goes on under its identifier; rounds that were
logged before a kill are logged with the same values and dropped, since Weights & Biases takes each step once.
"""

from __future__ import annotations

from collections.abc import Mapping

import wandb

from fedlab.trackers.tracker import RunFacts


class WeightsAndBiases:
    """A run of a project, in the group of its comparison."""

    def __init__(self, run: RunFacts) -> None:
        self.run = wandb.init(
            project=run.project,
            group=run.group or None,
            name=run.directory.name,
            id=run.id,
            resume="allow",
            config=dict(run.options),
            dir=str(run.directory),
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )

    def add(self, server_round: int, scalars: Mapping[str, float]) -> None:
        """Log the numbers of a round."""
        self.run.log(dict(scalars), step=server_round)

    def close(self, failed: bool) -> None:
        """Send what is left, and how the run ended."""
        self.run.finish(exit_code=int(failed))
