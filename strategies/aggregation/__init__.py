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

from fedlab.comm.grid import MEGABYTE
from fedlab.comm.sampling import Sampler, read_schedule
from fedlab.config.schema import Config, parse_join_rounds
from fedlab.errors import ConfigError, plural
from fedlab.strategies.aggregation import server_optimizers
from fedlab.strategies.aggregation.client import START_LOSS, make_replies, make_reply
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, Rule, client_update, client_updates
from fedlab.workload import Workload, blank_model

__all__ = [
    "Aggregation",
    "AggregationSpec",
    "ClientUpdate",
    "Rule",
    "client_update",
    "client_updates",
    "make",
    "make_replies",
    "make_reply",
]

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
            f"sure of {sure} (options data.num_clients, fraction_train, schedule, min_clients, join_rounds); use more "
            "clients or another rule"
        )
    if reason := rule.incompatibility(sure):
        raise ConfigError(f"aggregation {name!r}: {reason}")
    if rule.needs_all_updates:
        check_memory(name, workload, config)
    return rule


def clients_at_least(workload: Workload, config: Config) -> int:
    """Return the fewest clients that answer in any round that is not an error."""
    run, names = config.run, dict(enumerate(config.clients))
    early = len(names) - len(parse_join_rounds(run.join_rounds, names))
    if run.schedule:
        asked = min(map(len, read_schedule(run.schedule, names, run.rounds)))
    else:
        asked = Sampler(run.seed, run.fraction_train).count(early)
    return min(run.min_clients or asked, asked)


def check_memory(name: str, workload: Workload, config: Config) -> None:
    """Refuse a rule that holds all replies of a round where they would take too much memory.

    Raises
    ------
    ConfigError
        With what they take, what the option allows, and how many clients would fit.
    """
    state = blank_model(workload).state_dict()
    model = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / MEGABYTE
    asked = Sampler(config.run.seed, config.run.fraction_train).count(len(config.clients))
    limit = config.server.max_replies_mb
    if asked * model > limit:
        raise ConfigError(
            f"aggregation {name!r} needs all replies of a round at once: {asked} models of {model:.3g} MB are "
            f"{asked * model:.4g} MB, and option server.max_replies_mb allows {limit:g}; lower fraction_train so "
            f"that a round has at most {plural(int(limit / model), 'client')}, raise the option, or use a rule that "
            "sums"
        )
