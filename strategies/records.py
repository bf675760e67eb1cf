"""Records of the messages between a strategy's two sides, by name.

A message to a client carries an ArrayRecord ``arrays`` (the model's state by name) and a ConfigRecord ``config`` with
``server-round``; a reply carries a MetricRecord ``metrics`` with ``num-examples`` and whatever arrays the strategy
needs. Further records are documented in the strategy's module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlab.comm.stacked_replies import StackedContents, stacked_content
from fedlab.comm.tensors import tensors_of

ARRAYS, CONFIG, METRICS, ROUND, EXAMPLES = "arrays", "config", "metrics", "server-round", "num-examples"
NOTE = "note"  # in the config of a reply: a sentence for the server's log
FINAL = "final-round"  # in the config of a message of a round with which the run ends before the last
RUN, CHECKPOINTS = "run", "checkpoints"  # to clients that keep a state: identifier of the run, rounds it can go back to


def arrays_of(record: RecordDict, name: str = ARRAYS) -> dict[str, torch.Tensor]:
    """Return the tensors of one named ArrayRecord by name; others may read them too, so none is changed in place."""
    value = record[name]
    assert isinstance(value, ArrayRecord)
    return tensors_of(value)


def round_of(message: Message) -> int:
    """Return the round that a message belongs to."""
    config = message.content[CONFIG]
    assert isinstance(config, ConfigRecord)
    value = config[ROUND]
    assert isinstance(value, int)
    return value


def is_final(server_round: int, rounds: int, config: ConfigRecord) -> bool:
    """Return True if the run ends with this round: the last one, or an earlier one that was declared to be the last.

    In training it is known that a metric ends the run, and not yet that a budget does.
    """
    return server_round == rounds or bool(config.get(FINAL, False))


def client_metrics(reply: Message) -> dict[str, float]:
    """Return a reply's metrics as plain floats."""
    if (stacked := stacked_content(reply)) is not None:
        return stacked.of.once(("floats", METRICS), _floats)[stacked.row].copy()
    record = reply.content[METRICS]
    assert isinstance(record, MetricRecord)
    return {key: float(value) for key, value in record.items() if isinstance(value, int | float)}


def _floats(replies: StackedContents) -> list[dict[str, float]]:
    """Return the metrics of each of stacked replies as plain floats."""
    columns = replies.metrics[METRICS]
    return [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def drop_none(**values: float | None) -> dict[str, float]:
    """Return the values that are not None, by name."""
    return {name: value for name, value in values.items() if value is not None}


def metrics_record(metrics: Mapping[str, float], examples: int) -> MetricRecord:
    """Return the record of a reply's metrics, with the number of examples, its weight in a mean."""
    return MetricRecord({**metrics, EXAMPLES: examples})
