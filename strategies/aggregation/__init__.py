"""Aggregation rules by name: how the server combines its clients' whole models, in plain torch.

Each is a line of the table of strategies as well (``strategy=fedadam``: labeled clients train). A strategy of
another kind whose clients upload a whole model takes one by an option ``aggregation`` in its own section; the rule's
options are those of the section with its name::

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

from typing import Annotated, Any

from pydantic import Field

from fedlab.config.schema import Config, parse_join_rounds
from fedlab.errors import ConfigError
from fedlab.strategies.aggregation import server_optimizers
from fedlab.strategies.aggregation.client import START_LOSS, make_reply
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, Rule, client_updates
from fedlab.workload import Workload

__all__ = ["Aggregation", "AggregationSpec", "ClientUpdate", "Rule", "client_updates", "make", "make_reply"]

DEFAULT = "fedavg"

Aggregation = Annotated[str, Field(description="rule by which the server puts its clients' models together")]


def make(workload: Workload, config: Config, *, labeled: bool = True) -> Rule[Any]:
    """Return the run's rule for the models of a workload: the strategy's choice, else the mean by examples.

    Parameters
    ----------
    labeled
        Whether clients have labels, and so a loss.

    Raises
    ------
    ConfigError
        When the run is not sure of as many clients as the rule needs, or it cannot serve them.
    """
    plugin = config.plugins.get("aggregation")
    name, spec = (plugin.section, plugin.spec) if plugin else (DEFAULT, server_optimizers.FEDAVG)
    rule: Rule[Any] = spec.rule(config.aggregation or spec.options(), workload, config)
    if START_LOSS in rule.expected_metrics and not labeled:
        raise ConfigError(
            f"aggregation {name!r} weighs clients by their loss, and clients of strategy "
            f"{config.run.strategy!r} have no labels to take it on; use another rule"
        )
    sure = clients_at_least(workload, config)
    if sure < rule.min_updates:
        raise ConfigError(
            f"aggregation {name!r} with these options needs {rule.min_updates} replies a round, and this run is "
            f"sure of {sure} (options data.num_clients, min_clients, join_rounds); use more clients or another rule"
        )
    if reason := rule.incompatibility(sure):
        raise ConfigError(f"aggregation {name!r}: {reason}")
    return rule


def clients_at_least(workload: Workload, config: Config) -> int:
    """Return the fewest clients that answer in any round that is not an error."""
    names = dict(enumerate(config.clients))
    early = len(names) - len(parse_join_rounds(config.run.join_rounds, names))
    return min(config.run.min_clients or len(names), early)
