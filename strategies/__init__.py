"""The table of strategies: one federated algorithm per module, both halves in it."""

from __future__ import annotations

from collections.abc import Mapping

from fedlab.config.schema import Core, Flat, build, knobs
from fedlab.errors import ConfigError, suggest
from fedlab.strategies import (
    adabn,
    aggregation,
    dualadapt,
    fed_dann,
    fed_mcd,
    fedavg,
    fedbn,
    fednova,
    fedparts,
    fedprox,
    oracle,
    scaffold,
    self_training,
    source_only,
    startup,
)
from fedlab.strategies.ablations import ABLATIONS, Ablation, expand_ablation
from fedlab.strategies.aggregation import RULES
from fedlab.strategies.protocol import ClientFn, ClientFunctions, ServerStrategy, StrategySpec
from fedlab.training import Progress, null_progress
from fedlab.workload import Workload

__all__ = [
    "STRATEGIES",
    "ABLATIONS",
    "ClientFunctions",
    "StrategySpec",
    "ClientFn",
    "ServerStrategy",
    "Ablation",
    "chosen_by",
    "client_functions",
    "find",
    "make",
    "expand_ablation",
]

STRATEGIES: Mapping[str, StrategySpec] = {
    "dualadapt": dualadapt.SPEC,
    "source_only": source_only.SPEC,
    "adabn": adabn.SPEC,
    "self_training": self_training.SPEC,
    "fed_mcd": fed_mcd.SPEC,
    "fed_dann": fed_dann.SPEC,
    "oracle": oracle.SPEC,
    **{rule: fedavg.aggregation_spec(rule) for rule in RULES},
    "fedprox": fedprox.SPEC,
    "fedbn": fedbn.SPEC,
    "fedparts": fedparts.SPEC,
    "scaffold": scaffold.SPEC,
    "fednova": fednova.SPEC,
    "startup": startup.SPEC,
}


def find(name: str) -> StrategySpec:
    """One line of the table.

    Raises
    ------
    ConfigError
        When there is no such strategy, with the near match.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy {name!r}; {suggest(name, [*STRATEGIES, *ABLATIONS])}")
    return STRATEGIES[name]


def chosen_by(strategy: str, table: Flat) -> dict[str, str]:
    """What a table of knobs chooses beside the strategy: where that has a knob ``aggregation``, the rule.

    Raises
    ------
    ConfigError
        When there is no such strategy or rule.
    """
    knob = knobs({strategy: find(strategy).knobs}).get(f"{strategy}.aggregation")
    if knob is None:
        return {}
    rule = str(table.get(knob.key, knob.default))
    aggregation.find(rule)
    return {"aggregation": rule}


def make(flat: Flat, workload: Workload, progress: Progress = null_progress) -> ServerStrategy:
    """The server half named in a table of knobs.

    Raises
    ------
    ConfigError
        When there is no such strategy, a knob is wrong, or the strategy cannot serve the workload.
    """
    return find(build(Core, "", flat).strategy).server(workload, flat, progress)


def client_functions(name: str) -> ClientFunctions:
    """The client half of a strategy."""
    return find(name).client
