"""Whole models that clients upload: how the server asks for them, checks them and aggregates them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedlab.comm.stacked_replies import StackedContents, stacked_content
from fedlab.config.schema import Config
from fedlab.strategies import aggregation as aggregations
from fedlab.strategies import validation
from fedlab.strategies.aggregation import ClientUpdate
from fedlab.strategies.protocol import ARRAYS, CONFIG, EXAMPLES, METRICS, arrays_of, client_metrics
from fedlab.workload import Workload

RECORDS = frozenset({ARRAYS, METRICS, CONFIG})  # of a reply


class ModelUpdates:
    """The part of a round that strategies share whose clients upload a whole model.

    Parameters
    ----------
    workload
        Its model is what crosses the wire.
    labeled
        True if clients have everything that the workload's loss reads.
    required
        Names of the metrics that a client must report, beside the number of its examples and what the rule needs;
        None: ``loss`` if clients take any training step.
    optional
        Names of the metrics that a client may report.

    Attributes
    ----------
    rule
        The aggregation rule.
    sent
        Arrays by name that clients of this round start from.

    Raises
    ------
    ConfigError
        When the run has too few clients for the rule, or the rule cannot serve them.
    """

    def __init__(
        self,
        workload: Workload,
        config: Config,
        *,
        labeled: bool,
        required: Collection[str] | None = None,
        optional: Collection[str] = (),
    ) -> None:
        self.rule = aggregations.make(workload, config, labeled=labeled)
        self.max_norm_ratio = config.comm.max_update_norm_ratio
        if required is None:
            required = ["loss"] if config.client.trains else []
        self.required = {EXAMPLES, *required, *self.rule.expected_metrics}
        self.optional = set(optional)
        self.sent: dict[str, Tensor] = {}
        self.sent_norm = 0.0

    def send(self, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Remember the arrays of this round's messages, and add what the rule asks of clients to their config."""
        self.sent = arrays_of(RecordDict({ARRAYS: arrays}))
        self.sent_norm = validation.norm(self.sent)
        config.update(self.rule.client_config())

    def check(self, reply: Message, expected: Mapping[str, Tensor] | None = None) -> None:
        """Refuse a reply that is not a model like the one that was sent, or whose metrics are not the expected ones.

        Parameters
        ----------
        expected
            Names, shapes and types that the reply's arrays must have; None: those of the whole model.

        Raises
        ------
        InvalidUpdate
            With what came and what was expected.
        """
        stacked = stacked_content(reply)
        if stacked is None or expected is not None or not stacked.of.once(id(self.sent), self._valid)[stacked.row]:
            like, usual = (self.sent, self.sent_norm) if expected is None else (expected, None)
            validation.validate_arrays(reply.content, ARRAYS, like, self.max_norm_ratio, usual)
            validation.validate_content(reply, RECORDS, self.required, self.optional)
        if reason := self.rule.validate_metrics(client_metrics(reply)):
            raise validation.InvalidUpdate(reason)

    def _valid(self, replies: StackedContents) -> list[bool]:
        """Return which of stacked replies pass the checks of arrays and names, all found at once."""
        named = validation.has_names(replies.names, RECORDS, replies.metrics[METRICS], self.required, self.optional)
        if not named:
            return [False] * len(replies)
        return validation.valid_states(replies.arrays[ARRAYS], self.sent, self.max_norm_ratio, self.sent_norm)

    def aggregate(
        self,
        replies: Iterable[Message],
        server_round: int,
        weight: Callable[[ClientUpdate], float | None] = lambda update: None,
    ) -> dict[str, Tensor]:
        """Return the rule's new arrays by name, in the shapes and types of :attr:`sent`.

        Parameters
        ----------
        weight
            A client's weight in the mean; None: the rule says.
        """
        updates = (
            one if (own := weight(one)) is None else replace(one, weight=own)
            for one in aggregations.client_updates(replies)
        )
        return self.rule.aggregate(self.sent, updates, server_round)
