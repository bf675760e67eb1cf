"""Defaults of a strategy's server side: broadcast to every client, no metrics, no state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedlab.comm.messages import to_node
from fedlab.privacy.accounting import PrivacyAccount
from fedlab.strategies.protocol import ARRAYS, CONFIG, ROUND, partition_by_node

Records = Mapping[str, ArrayRecord | MetricRecord | ConfigRecord]


class BaseStrategy:
    """Server side whose defaults train and evaluate every connected client on the global arrays.

    A subclass implements :meth:`initialize`, :meth:`check` and :meth:`aggregate_train`, and overrides of the rest what
    differs. The methods are documented in :class:`fedlab.strategies.protocol.ServerStrategy`.
    """

    def initialize(self) -> ArrayRecord:
        """Return the arrays before round 1."""
        raise NotImplementedError

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one training message for each client: the global arrays and the config."""
        return broadcast(grid, MessageType.TRAIN, server_round, arrays, config)

    def check(self, reply: Message) -> None:
        """Raise :class:`fedlab.strategies.validation.InvalidUpdate` if a training reply may not be used."""
        raise NotImplementedError

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new global arrays from the clients' valid replies."""
        raise NotImplementedError

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one evaluation message for each client: the global arrays and the config."""
        return broadcast(grid, MessageType.EVALUATE, server_round, arrays, config)

    def metrics(self) -> dict[str, float]:
        """Return the server's own metrics of the last round."""
        return {}

    def events(self) -> list[dict[str, Any]]:
        """Return the events of the last round that are not numbers."""
        return []

    def weighed_by(self) -> Mapping[str, float]:
        """Return nothing: a client weighs by its number of examples, if at all."""
        return {}

    def privacy(self) -> PrivacyAccount | None:
        """Return None: the strategy adds no noise."""
        return None

    def state(self) -> dict[str, Any]:
        """Return everything that lives from round to round beside the global arrays."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state returned by :meth:`state`."""


def broadcast(
    grid: Grid,
    message_type: str,
    server_round: int,
    arrays: ArrayRecord,
    config: ConfigRecord,
    *,
    extra: Records | None = None,
    per_client: Callable[[int], Records] | None = None,
    partitions: Collection[int] | None = None,
) -> list[Message]:
    """Return one message for each connected client, in the order of partitions.

    Clients without records of their own share one content object, which the grid then encodes only once.

    Parameters
    ----------
    message_type
        ``MessageType.TRAIN`` or ``MessageType.EVALUATE``.
    arrays, config
        The records ``arrays`` and ``config``; the round is written into the latter.
    extra
        Further records by name that every client gets.
    per_client
        Maps a partition to the records that its client gets in addition, or in place of those of the same name.
    partitions
        Partitions of the clients to address; None: all.
    """
    config[ROUND] = server_round
    records = {ARRAYS: arrays, CONFIG: config, **(extra or {})}
    shared = RecordDict(records)
    messages: list[Message] = []
    first: Message | None = None  # with the shared content
    for node, partition in partition_by_node(grid).items():
        if partitions is not None and partition not in partitions:
            continue
        own = per_client(partition) if per_client else {}
        if own:
            messages.append(Message(RecordDict({**records, **own}), dst_node_id=node, message_type=message_type))
        elif first is None:
            messages.append(first := Message(shared, dst_node_id=node, message_type=message_type))
        else:
            messages.append(to_node(first, node))
    return messages
