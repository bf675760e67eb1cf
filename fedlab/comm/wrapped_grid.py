"""A grid around another one."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

Wrapped = TypeVar("Wrapped", bound=Grid)


class WrappedGrid(Grid, Generic[Wrapped]):
    """Grid whose run record and way to make messages are those of another one; a subclass carries messages to it.

    Parameters
    ----------
    grid
        The other one.
    """

    def __init__(self, grid: Wrapped) -> None:
        self.grid = grid

    def set_run(self, run: Any) -> None:
        """Set the run record of the wrapped grid (a type that Flower does not export)."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """Run record of the wrapped grid."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message with the wrapped grid, in Flower's older style."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)
