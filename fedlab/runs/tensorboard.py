"""A run's metrics as TensorBoard events: ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fedlab.runs.client_distribution import FEW, distributions


class TensorBoard:
    """Writes one round's record; what a killed run wrote after its last checkpoint is purged on resuming.

    Of a few clients every one has a curve; of many, the quantiles over those that were tested in the round have.

    Parameters
    ----------
    path
        Folder of the event files.
    after
        The last round that stays.
    """

    def __init__(self, path: Path, after: int) -> None:
        self.writer = SummaryWriter(str(path), purge_step=after + 1)
        self.clients: set[str] = set()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one line of ``metrics.jsonl``."""
        step = record["round"]
        self.clients |= record["clients"].keys()
        curves = record["clients"]
        if len(self.clients) > FEW:
            names = {name for metrics in record["clients"].values() for name in metrics}
            curves = distributions(record["clients"], dict.fromkeys(sorted(names), 0))
        for curve, metrics in curves.items():
            for name, value in metrics.items():
                self._scalar(f"{name}/{curve}", value, step)
        for group in ("mean", "server", "score", "seconds"):
            for name, value in record.get(group, {}).items():
                self._scalar(f"{group}/{name}", value, step)
        for name in ("train_down", "train_up"):
            self._scalar(f"bytes/{name}", sum(client[name] for client in record["bytes"].values()), step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()

    def _scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)
