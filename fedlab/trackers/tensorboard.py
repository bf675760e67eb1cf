"""A run's metrics as TensorBoard events: ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from fedlab.trackers.tracker import RunFacts

FOLDER = "tensorboard"  # of the run directory


class TensorBoard:
    """Writes event files; what a killed run wrote after its last checkpoint is purged on resuming."""

    def __init__(self, run: RunFacts) -> None:
        self.writer = SummaryWriter(str(run.directory / FOLDER), purge_step=run.after + 1)

    def add(self, server_round: int, scalars: Mapping[str, float]) -> None:
        """Write the numbers of a round."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, server_round)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        """Write what is left."""
        self.writer.close()
