"""The grid of a comparison: strategies x values of options x seeds, each checked, with its first seed, before any
cell runs.

An option of another strategy's section has no effect on a variant and is left out of its cells, of which there is then
one for all the option's values.

What a cell's options are made of, each going over what stands before it: the preset; the strategy's defaults, where the
preset is made for another one; what the strategy changes where it stands beside others; labels for the clients, where
it trains on them and they have none; the variant by name; the grid; the options written behind the variant.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from fedlab import launch, registry
from fedlab.checks import clients_have_labels
from fedlab.comparison.objects import is_of_this_process
from fedlab.comparison.spec import SEPARATOR, Variant, format_value
from fedlab.config.resolve import with_options
from fedlab.config.schema import Config
from fedlab.config.sections import Overrides, Value, is_free_text, options
from fedlab.errors import ConfigError, DataError
from fedlab.strategies.ablations import expand_ablation
from fedlab.strategies.protocol import StrategySpec

THREADS = 1  # of a cell, unless the preset or the user says otherwise: as many cells at a time as there are cores
AUTO = "auto"  # device of a machine that is not known yet
PROCESS = f"{os.getpid()}-{time.time_ns()}"
# Options on which no result depends.
NOT_HASHED = frozenset(
    {"name", "seed", "checkpoint.pretrain_cache", "checkpoint.keep", "checkpoint.keep_initial", "report"}
    | {"track", "track_project", "track_group", "data.expect_full"}
)


@dataclass(frozen=True)
class CellPlan:
    """One cell: its options resolved and checked, and those of the grid that have an effect on it, as written."""

    label: str
    strategy: str
    seed: int
    options: Mapping[str, str]
    config: Config

    @property
    def run(self) -> str:
        """Run directory below the comparison's: the same options, the same directory."""
        return f"cells/{self.config.run.name}-{self.seed}"

    @property
    def spec(self) -> StrategySpec:
        """The registry's description of its strategy."""
        found: StrategySpec = self.config.plugins["strategy"].spec
        return found


def config_hash(content: object) -> str:
    """Return a short name for plain JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def plan_cells(
    preset: str | Mapping[str, Any],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    grid: Mapping[str, Sequence[Value]],
    budget: Overrides,
    here: bool = True,
) -> list[CellPlan]:
    """Return every cell, seeds within options within variants; nothing is written.

    Parameters
    ----------
    here
        False if other machines run the cells, whose devices are not known: the option ``device`` stays as it is.

    Raises
    ------
    ConfigError, DataError
        With the sentence of the first cell that could not run, and which one that is.
    """
    variable, used = [name for name, values in grid.items() if len(values) > 1], set()
    plans: list[CellPlan] = []
    for variant in variants:
        effective = _effective(preset, variant, grid)
        used |= set(effective)
        for values in product(*(grid[name] for name in effective)):
            point = dict(zip(effective, values, strict=True))
            shown = {name: format_value(value) for name, value in point.items() if name in variable}
            config = _checked(preset, variant, {**budget, **point}, shown, seeds[0], here)
            strategy = config.run.strategy
            plans += [
                CellPlan(variant.label, strategy, seed, shown, with_options(config, {"seed": seed})) for seed in seeds
            ]
    unused = [name for name in grid if name not in used]
    if unused:
        settings = registry.settings_that_use(unused[0], plans[0].config.plugins["strategy"])
        remedy = f"; it has an effect with {' or '.join(settings)}" if settings else ""
        raise ConfigError(
            f"option {unused[0]!r} has no effect on any of {', '.join(v.label for v in variants)}{remedy}"
        )
    return plans


def _effective(preset: str | Mapping[str, Any], variant: Variant, grid: Mapping[str, Sequence[Value]]) -> list[str]:
    """Return the grid's options that have an effect on a variant; one that the variant itself sets is refused."""
    first = {name: values[0] for name, values in grid.items()}
    effective = [name for name in grid if _affects(preset, variant, name, first)]
    clash = next((name for name in effective if name in {**_named(variant)[1], **variant.options}), None)
    if clash:
        raise ConfigError(
            f"option {clash!r} is set by variant {variant.label!r} and for the whole comparison; keep one of them"
        )
    return effective


def _named(variant: Variant) -> tuple[str, Overrides]:
    """The strategy behind a variant, and what its name alone says of options."""
    found = dict(expand_ablation({}, {"strategy": variant.name})[0])
    return str(found.pop("strategy", variant.name)), found


def _affects(preset: str | Mapping[str, Any], variant: Variant, option: str, grid: Overrides) -> bool:
    """Return True if this variant uses an option: not that of another strategy, nor one that its strategy ignores."""
    if option in registry.find("strategy", _named(variant)[0]).spec.ignores:
        return False
    section, dot, _ = option.rpartition(".")
    sections = {
        registry.find(kind, name).section for kind in ("strategy", "aggregation") for name in registry.names(kind)
    }
    if not dot or section not in sections:
        return True
    table, given = expand_ablation(
        registry.preset_options(preset), {"strategy": variant.name, **grid, **variant.options}
    )
    used = registry.plugins_of({**table, **given})
    return section in {plugin.section for plugin in used.values()}


def _checked(
    preset: str | Mapping[str, Any], variant: Variant, given: Overrides, point: Overrides, seed: int, here: bool
) -> Config:
    """A cell's configuration, named by its hash; the sentence of one that could not run says which one it is."""
    base, named = _named(variant)
    found = registry.find("strategy", base)
    spec: StrategySpec = found.spec
    table = registry.preset_options(preset)
    usual = {"checkpoint.keep": 1, **({} if "threads" in table else {"threads": THREADS})}
    compared = {f"{found.section}.{name}": value for name, value in spec.comparison_overrides.items()}
    own = {**named, **given, **variant.options, "strategy": base, "seed": seed, "checkpoint.keep_initial": True}
    elsewhere: Overrides = {}
    if not here:
        elsewhere, own = {"device": {**table, **own}.get("device", AUTO)}, {**own, "device": "cpu"}
    try:
        settled = launch.resolve_config(preset, {**usual, **compared, **own})
        labels: Overrides = {}
        if spec.needs_client_labels and not clients_have_labels(settled.workload):
            labels = settled.plugins["workload"].spec.oracle_overrides
        config = launch.prepare(preset, {**usual, **compared, **labels, **own})
    except (ConfigError, DataError) as error:
        raise type(error)(f"{_about(variant, point)}: {error}{_hint(given, str(error))}") from None
    config = with_options(config, elsewhere)
    hashed = {name: value for name, value in config.options().items() if name not in NOT_HASHED}
    if is_of_this_process(config):  # what has this name in another process may be something else
        hashed["process"] = PROCESS
    return with_options(config, {"name": config_hash(hashed)})


def _about(variant: Variant, given: Overrides) -> str:
    return " ".join([variant.label, *(f"{name}={format_value(value)}" for name, value in given.items())])


def _hint(given: Overrides, error: str) -> str:
    """Return a hint on values that hold a comma, where the error is about such an option or names all its parts."""
    known = options(registry.all_sections())
    meant = [k for k, v in given.items() if "," in str(v) and k in known and is_free_text(known[k])]
    words = set(re.findall(r"[\w@-]+", error))
    said = [k for k in meant if k in error or {part.strip() for part in str(given[k]).split(",")} <= words]
    lists = [f"{k}='{str(given[k]).replace(',', SEPARATOR)}'" for k in said]
    return f"\nIf these are several values to compare, write {' '.join(lists)}" if lists else ""


def default_baseline(plans: Iterable[CellPlan]) -> str:
    """Return the label of the variant that others are compared with unless asked: a lower bound's, else the first."""
    labels = {plan.label: plan.spec.baseline for plan in plans}
    return ([label for label, bound in labels.items() if bound] or list(labels))[0]


def upper_bound(plans: Iterable[CellPlan]) -> str:
    """Return the label of the upper bound, "" where none is compared."""
    return next((plan.label for plan in plans if plan.spec.is_upper_bound), "")


def uses_labels(plans: Sequence[CellPlan]) -> list[str]:
    """Return the variants whose clients learn from labels, none where all do or where the loss takes none."""
    if not any(plan.config.plugins["workload"].spec.oracle_overrides for plan in plans):
        return []
    found = dict.fromkeys(plan.label for plan in plans if plan.spec.needs_client_labels)
    return [] if len(found) == len({plan.label for plan in plans}) else list(found)
