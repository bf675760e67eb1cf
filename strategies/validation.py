"""Validation of clients' updates: each check ends in a sentence, so that an invalid update is never aggregated.

:func:`validate_reply` holds for every reply; a strategy calls :func:`validate_arrays` with what it expects. The grid
turns their errors into a failure of that client, and the round continues (``fedlab/comm/grid.py``).

The checks stop accidents and crude attacks: wrong shapes and types, values that are not finite, absurd norms, another
round's update. Well-formed malicious updates are not detected.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from functools import partial

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlab.comm.stacked_replies import StackedContents, config_of, stacked_content
from fedlab.comm.tensors import RowTensors, tensors_on_demand
from fedlab.errors import FedlabError
from fedlab.models.batchnorm_stats import in_units_of_activations
from fedlab.strategies.protocol import CONFIG, EXAMPLES, METRICS, ROUND, client_metrics, round_of
from fedlab.vectorized.stacked_states import Kinds, StackedStates

MAX_EXAMPLES = 10**9  # an update's weight in a mean; a larger number is an error or an attack
MAX_METRICS = 1_000  # of one reply
MAX_METRIC_NAME = 100  # characters
MAX_METRIC = 1e12  # beyond which a mean over clients says nothing about the others
NOT_NEGATIVE = ("running_var", "num_batches_tracked")  # last parts of names of torch's batch norm


class InvalidUpdate(FedlabError):
    """An update that may not be used; the message says why."""


def validate_reply(message: Message, reply: Message) -> None:
    """Validate that a reply is for this round, and that its metrics are finite numbers.

    Raises
    ------
    InvalidUpdate
        When the round or the number of examples is missing, or a metric is invalid.
    """
    wanted, stacked = round_of(message), stacked_content(reply)
    if stacked is not None and stacked.of.once((validate_reply, wanted), partial(_plain, wanted))[stacked.row]:
        return
    config = config_of(reply, CONFIG)
    came = config.get(ROUND) if config is not None else None
    if came != wanted or isinstance(came, bool):
        raise InvalidUpdate(f"it is an update for round {came!r}, in round {wanted}")
    record = reply.content.get(METRICS)
    if not isinstance(record, MetricRecord):
        raise InvalidUpdate(f"it has no metrics; its records are {sorted(reply.content)}")
    if len(record) > MAX_METRICS:
        raise InvalidUpdate(f"it has {len(record):,} metrics; expected at most {MAX_METRICS:,}")
    for name, value in record.items():
        if not 0 < len(name) <= MAX_METRIC_NAME or not name.isprintable():
            raise InvalidUpdate(f"its metric {name[:40]!r} has no name of 1 to {MAX_METRIC_NAME} printable characters")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidUpdate(f"its metric {name!r} is {str(value)[:40]}, which is not a finite number")
        if abs(value) > MAX_METRIC:
            raise InvalidUpdate(f"its metric {name!r} is {value:g}; expected at most {MAX_METRIC:g}")
    examples = record.get(EXAMPLES)
    if not isinstance(examples, int) or isinstance(examples, bool) or not 0 < examples <= MAX_EXAMPLES:
        raise InvalidUpdate(f"it reports {examples} examples; expected 1 to {MAX_EXAMPLES:,}")


def _plain(server_round: int, replies: StackedContents) -> list[bool]:
    """Return which of stacked replies have nothing that :func:`validate_reply` would refuse, all found at once."""
    config, columns = replies.configs.get(CONFIG), replies.metrics.get(METRICS, {})
    came = config.get(ROUND) if config is not None else None
    if came != server_round or isinstance(came, bool) or EXAMPLES not in columns or len(columns) > MAX_METRICS:
        return [False] * len(replies)
    if not all(0 < len(name) <= MAX_METRIC_NAME and name.isprintable() for name in columns):
        return [False] * len(replies)
    plain = [isinstance(number, int) and 0 < number <= MAX_EXAMPLES for number in columns[EXAMPLES]]
    for column in columns.values():  # of numbers that are not finite, no comparison is true
        plain = [so_far and abs(number) <= MAX_METRIC for so_far, number in zip(plain, column, strict=True)]
    return plain


def validate_content(
    reply: Message, records: Collection[str], required: Collection[str], optional: Collection[str] = ()
) -> None:
    """Validate that a reply has these records and metrics, and nothing else that a client may have put into it.

    Raises
    ------
    InvalidUpdate
        With what came and what was expected.
    """
    metrics = client_metrics(reply)
    if not has_names(reply.content, records, metrics, required, optional):
        raise InvalidUpdate(
            f"its records and metrics are {sorted(reply.content), sorted(metrics)}; expected {sorted(records)} and "
            f"{sorted({*required, *optional})}"
        )


def has_names(
    came: Iterable[str],
    records: Collection[str],
    metrics: Iterable[str],
    required: Collection[str],
    optional: Collection[str],
) -> bool:
    """Return True if a reply has the records and metrics that :func:`validate_content` asks for, and no other."""
    return set(came) == set(records) and set(required) <= set(metrics) <= {*required, *optional}


def valid_states(states: StackedStates, like: Mapping[str, Tensor], max_norm_ratio: float, usual: float) -> list[bool]:
    """Return which of stacked states :func:`validate_arrays` accepts, all found at once."""
    if states.kinds != kinds_of(like):
        return [False] * len(states)
    positive = [name for name in like if name.rpartition(".")[2] in NOT_NEGATIVE]
    limit = max_norm_ratio * max(usual, 1.0)
    return [
        size <= limit and math.isfinite(size) and not any(states.is_negative(name, row) for name in positive)
        for row, size in enumerate(states.norms)
    ]


def validate_arrays(
    content: RecordDict,
    name: str,
    like: Mapping[str, Tensor],
    max_norm_ratio: float,
    usual: float | None = None,
    *,
    signed: bool = False,
) -> Mapping[str, Tensor]:
    """Return the tensors of one record, validated against those of the server.

    Parameters
    ----------
    like
        The server's tensors: names, shapes and types must be the same.
    max_norm_ratio
        Largest Euclidean norm over all floats of the record, as a multiple of the norm of ``like``.
    usual
        That norm, where it is known already.
    signed
        True for arrays that are differences or signs, so that those of variances and counts may be below 0.

    Raises
    ------
    InvalidUpdate
        For wrong names, shapes or types, NaN or infinity, variances below 0, or an absurd norm.
    """
    found = read_arrays(content, name)
    if found.keys() != like.keys():
        missing, more = sorted(like.keys() - found.keys()), sorted(found.keys() - like.keys())
        raise InvalidUpdate(f"its arrays {name!r} have other names: missing {missing[:3]}, unknown {more[:3]}")
    wanted_kinds = kinds_of(like)
    for key, came in kinds_of(found).items():
        if came != (wanted := wanted_kinds[key]):
            raise InvalidUpdate(
                f"its array {name}/{key} is {came[0]} {tuple(came[1])}; expected {wanted[0]} {tuple(wanted[1])}"
            )
        if not signed and key.rpartition(".")[2] in NOT_NEGATIVE and _is_negative(found, key):
            raise InvalidUpdate(f"its array {name}/{key} is negative somewhere, and it is a variance or a count")
    size, usual = norm(found), norm(like) if usual is None else usual
    if not math.isfinite(size):  # in float64 a sum of squares of finite numbers of float32 is finite
        bad = [key for key, tensor in found.items() if not tensor.isfinite().all()]
        raise InvalidUpdate(f"its array {name}/{(bad or list(found))[0]} holds NaN or infinity")
    if size > max_norm_ratio * max(usual, 1.0):
        raise InvalidUpdate(
            f"the norm of its {name} is {size:.3g}, {size / max(usual, 1.0):.3g} times the server's; the option "
            f"comm.max_update_norm_ratio allows {max_norm_ratio:g} times"
        )
    return found


def read_arrays(content: RecordDict, name: str) -> Mapping[str, Tensor]:
    """Return the tensors of one record by name; those of a stack are not made before they are read.

    Raises
    ------
    InvalidUpdate
        When the record is missing or cannot be decoded.
    """
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise InvalidUpdate(f"it has no arrays {name!r}; its records are {sorted(content)}")
    try:
        return tensors_on_demand(record)
    except Exception as error:
        raise InvalidUpdate(f"its arrays {name!r} cannot be read: {error}") from None


def kinds_of(tensors: Mapping[str, Tensor]) -> Kinds:
    """Return type and shape of each tensor."""
    if isinstance(tensors, RowTensors):
        return tensors.of.kinds
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _is_negative(tensors: Mapping[str, Tensor], name: str) -> bool:
    if isinstance(tensors, RowTensors):
        return tensors.of.is_negative(name, tensors.row)
    return bool((tensors[name] < 0).any())


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm over all float tensors of a state, with standard deviations for running variances."""
    if isinstance(tensors, RowTensors):  # those of all rows at once
        return tensors.of.norms[tensors.row]
    floats = [in_units_of_activations(name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point()]
    return math.hypot(*map(float, torch._foreach_norm(floats, 2, torch.float64))) if floats else 0.0
