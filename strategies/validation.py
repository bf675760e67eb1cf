"""What a client may send: checks that end in a sentence, so that no bad update is ever averaged in.

A strategy calls :func:`validate_arrays` with what it expects in a reply's place; :func:`validate_reply` holds for every reply. What they
raise, the exchange turns into a failure of that client, and the round goes on (``fedlab/comm/grid.py``).

They stop accidents and crude attacks: wrong shapes and types, values that are not finite, absurd norms, another
round's update. They do not stop a client that sends a plausible but false update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlab.errors import FedlabError
from fedlab.strategies.protocol import CONFIG, EXAMPLES, METRICS, ROUND, arrays_of, round_of

MAX_EXAMPLES = 10**9  # an update's weight in a mean: beyond that it is a mistake or an attack


class InvalidUpdate(FedlabError):
    """An update that may not be used, and why."""


def validate_reply(message: Message, reply: Message) -> None:
    """Refuse a reply for another round, or with metrics that are not finite numbers.

    Raises
    ------
    InvalidUpdate
        With what came and what was expected.
    """
    config, wanted = reply.content.get(CONFIG), round_of(message)
    came = config.get(ROUND) if isinstance(config, ConfigRecord) else None
    if came != wanted or isinstance(came, bool):
        raise InvalidUpdate(f"it is an update for round {came!r}, in round {wanted}")
    record = reply.content.get(METRICS)
    if not isinstance(record, MetricRecord):
        raise InvalidUpdate(f"it has no metrics; its records are {sorted(reply.content)}")
    for name, value in record.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidUpdate(f"its metric {name!r} is {str(value)[:40]}, which is no finite number")
    examples = record.get(EXAMPLES)
    if not isinstance(examples, int) or not 0 < examples <= MAX_EXAMPLES:
        raise InvalidUpdate(f"it says that it has {examples} examples; expected 1 to {MAX_EXAMPLES:,}")


def validate_arrays(content: RecordDict, name: str, like: Mapping[str, Tensor], norm_limit: float) -> dict[str, Tensor]:
    """The tensors of one record, if they could stand in the place of ``like``.

    Parameters
    ----------
    like
        What the server holds there: names, shapes and types must be the same.
    norm_limit
        Largest Euclidean norm over all floats of the record, in norms of ``like``.

    Raises
    ------
    InvalidUpdate
        For wrong names, shapes or types, NaN or infinity, or an absurd norm.
    """
    found = read_arrays(content, name)
    if found.keys() != like.keys():
        missing, more = sorted(like.keys() - found.keys()), sorted(found.keys() - like.keys())
        raise InvalidUpdate(f"its arrays {name!r} have other names: missing {missing[:3]}, unknown {more[:3]}")
    for key, tensor in found.items():
        came, wanted = (tensor.dtype, tuple(tensor.shape)), (like[key].dtype, tuple(like[key].shape))
        if came != wanted:
            raise InvalidUpdate(f"its array {name}/{key} is {came[0]} {came[1]}; expected {wanted[0]} {wanted[1]}")
        if not tensor.isfinite().all():
            raise InvalidUpdate(f"its array {name}/{key} holds NaN or infinity")
    size, usual = norm(found), norm(like)
    if size > norm_limit * max(usual, 1.0):
        raise InvalidUpdate(
            f"the norm of its {name} is {size:.3g}, {size / max(usual, 1.0):.3g} times the server's; the option "
            f"norm_limit allows {norm_limit:g} times"
        )
    return found


def read_arrays(content: RecordDict, name: str) -> dict[str, Tensor]:
    """The tensors of one record; :class:`InvalidUpdate` where there is none that can be read."""
    if not isinstance(content.get(name), ArrayRecord):
        raise InvalidUpdate(f"it has no arrays {name!r}; its records are {sorted(content)}")
    try:
        return arrays_of(content, name)
    except Exception as error:
        raise InvalidUpdate(f"its arrays {name!r} cannot be read: {error}") from None


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Euclidean norm over every float in a state."""
    squares = [tensor.double().square().sum() for tensor in tensors.values() if tensor.is_floating_point()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
