"""Aggregation rules by name: how the server combines its clients' whole models, in plain torch.

Each is a line of the table of strategies as well (``strategy=fedadam``: labelled clients train). A strategy of
another kind whose clients upload a whole model takes one by a knob ``aggregation`` in its own section; the rule's
knobs are those of the section with its name::

    fedlab run self-training-digits self_training.aggregation=fedadam fedadam.learning_rate=0.03

One decision for all rules: trainable arrays go through the rule; batch-norm statistics and other floats do where the
result stays among what clients sent (mean, median, selection), else they take the weighted mean; counters take the
largest. All come back in the types of the model, where Flower's means turn counters into floats.

A strategy uses a rule so: :func:`make` in ``__init__``; ``config.update(rule.client_config())`` before it sends;
``rule.expected_metrics`` among the metrics that its ``check`` expects, and ``rule.validate_metrics`` on them;
``rule.aggregate(current, client_updates(replies), server_round)``; ``state`` and ``restore`` beside its own;
:func:`make_reply` on the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from fedlab.config.schema import Core, Flat, build, parse_arrivals
from fedlab.errors import ConfigError, near_match
from fedlab.strategies.aggregation import fairness, privacy, robust, server_optimizers
from fedlab.strategies.aggregation.client import START_LOSS, make_reply
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, Rule, client_updates
from fedlab.workload import Workload

__all__ = [
    "RULES",
    "Aggregation",
    "AggregationSpec",
    "ClientUpdate",
    "Rule",
    "client_updates",
    "find",
    "make",
    "make_reply",
]

Aggregation = Annotated[str, Field(description="rule by which the server puts its clients' models together")]

RULES: Mapping[str, AggregationSpec[Any]] = {
    "fedavg": server_optimizers.FEDAVG,
    "fedavgm": server_optimizers.FEDAVGM,
    "fedadagrad": server_optimizers.FEDADAGRAD,
    "fedadam": server_optimizers.FEDADAM,
    "fedyogi": server_optimizers.FEDYOGI,
    "fedmedian": robust.FEDMEDIAN,
    "fedtrimmedavg": robust.FEDTRIMMEDAVG,
    "krum": robust.KRUM,
    "multikrum": robust.MULTIKRUM,
    "bulyan": robust.BULYAN,
    "qfedavg": fairness.QFEDAVG,
    "dp_fixed": privacy.DP_FIXED,
    "dp_adaptive": privacy.DP_ADAPTIVE,
}


def find(name: str) -> AggregationSpec[Any]:
    """Return one row of the table of rules.

    Raises
    ------
    ConfigError
        When there is no such rule; it names the nearest match.
    """
    if name not in RULES:
        raise ConfigError(f"unknown aggregation {name!r}; {near_match(name, RULES)}")
    return RULES[name]


def make(name: str, workload: Workload, flat: Flat, *, labelled: bool = True) -> Rule[Any]:
    """Return a rule for the models of a workload.

    Parameters
    ----------
    labelled
        Whether clients have labels, and so a loss.

    Raises
    ------
    ConfigError
        When there is no such rule, a knob of it is wrong, or the run is not sure of as many clients as it needs.
    """
    rule = find(name).make(name, workload, flat)
    if START_LOSS in rule.expected_metrics and not labelled:
        raise ConfigError(
            f"aggregation {name!r} weighs clients by their loss, and clients of strategy "
            f"{build(Core, '', flat).strategy!r} have no labels to take it on; use another rule"
        )
    sure = clients_at_least(workload, flat)
    if sure < rule.min_updates:
        raise ConfigError(
            f"aggregation {name!r} with these knobs needs {rule.min_updates} replies a round, and this run is sure of "
            f"{sure} (knobs clients, min_clients, arrivals); use more clients or another rule"
        )
    if reason := rule.incompatibility(sure):
        raise ConfigError(f"aggregation {name!r}: {reason}")
    return rule


def clients_at_least(workload: Workload, flat: Flat) -> int:
    """Return the smallest number of clients that answer in any round that is not an error."""
    core = build(Core, "", flat)
    names = dict(enumerate(workload.clients[: core.clients or None]))
    early = len(names) - len(parse_arrivals(core.arrivals, names))
    return min(core.min_clients or len(names), early)
