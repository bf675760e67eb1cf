"""Facts in Flower's messages that a run directory records: the round, and the metrics in a reply.

Flower's strategies write the round into a config record (``server-round``); its older server puts it into the group of
a message; a loop of an app's own may say nothing.
"""

from __future__ import annotations

import hashlib
import math

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

SERVER_ROUND = "server-round"
EXAMPLES = "num-examples"
RENAMED = {"num_examples": EXAMPLES}  # of the older API
OLD_METRICS = ".metrics"  # end of the name of a config record in which the older API has its metrics


def round_of(message: Message) -> int | None:
    """Return the round that a message says it belongs to; None where it does not say."""
    records = message.content.values() if message.has_content() else ()
    for record in records:
        if isinstance(record, ConfigRecord) and isinstance(number := record.get(SERVER_ROUND), int):
            return number
    group = message.metadata.group_id
    return int(group) if group.isdecimal() else None


def kind_of(message: Message) -> str:
    """Return the kind of a message without the name of its function: "train" of ``train.fast``."""
    return message.metadata.message_type.partition(".")[0]


def is_training(message: Message) -> bool:
    """Return True for a message that asks for training."""
    return kind_of(message) == MessageType.TRAIN


def metrics_of(reply: Message) -> dict[str, float]:
    """Return the numbers that a client reports; of training, under names that begin with ``train``."""
    found: dict[str, float] = {}
    for name, record in reply.content.items():
        if isinstance(record, MetricRecord) or (isinstance(record, ConfigRecord) and name.endswith(OLD_METRICS)):
            numbers = {key: value for key, value in record.items() if is_number(value)}
            found |= {RENAMED.get(key, key): float(value) for key, value in numbers.items()}  # type: ignore[arg-type]
    if not is_training(reply):
        return found
    return {key if key.startswith("train") else f"train_{key}": value for key, value in found.items()}


def is_number(value: object) -> bool:
    """Return True for a finite number; lists, text and switches are no metrics of a round."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def add_arrays(digest: hashlib._Hash, content: RecordDict) -> int:
    """Add the arrays of a reply to a digest, with their names, types and shapes; return their number."""
    count = 0
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                digest.update(f"{name}/{key} {array.dtype} {array.shape}".encode())
                digest.update(array.data)
                count += 1
    return count
