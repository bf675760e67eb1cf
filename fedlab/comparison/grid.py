"""The grid of a comparison: strategies x values of knobs x seeds, each checked, with its first seed, before any
cell runs.

A knob of another strategy's section has no effect on a variant and is left out of its cells, of which there is then
one for all the knob's values.

What a cell's knobs are made of, each going over what stands before it: the preset; what the strategy changes where it
stands beside others; labels for the clients, where it trains on them and they have none; the variant by name; the
grid; the knobs written behind the variant.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from fedlab import launch, workloads
from fedlab.comparison.spec import SEPARATOR, Variant, format_value
from fedlab.config.schema import Flat, Value, is_text, read_preset
from fedlab.errors import ConfigError, DataError

THREADS = 1  # of a cell, unless the preset or the user says otherwise: as many cells at a time as there are cores
# Knobs on which no result depends.
NOT_HASHED = frozenset({"name", "seed", "run_dir", "pretrained", "keep_checkpoints", "keep_start"})


@dataclass(frozen=True)
class CellPlan:
    """One cell: its knobs resolved and checked, and those of the grid that have an effect on it, as written."""

    label: str
    strategy: str
    seed: int
    knobs: Mapping[str, str]
    flat: Flat

    @property
    def run(self) -> str:
        """Run directory below the comparison's: the same knobs, the same directory."""
        return f"cells/{self.flat['name']}-{self.seed}"


def config_hash(content: object) -> str:
    """Return a short name for plain JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def plan_cells(
    preset: str, variants: Sequence[Variant], seeds: Sequence[int], grid: Mapping[str, Sequence[Value]], budget: Flat
) -> list[CellPlan]:
    """Return every cell, seeds within knobs within variants; nothing is written.

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
            flat = _checked(preset, variant, {**budget, **point}, shown, seeds[0])
            plans += [
                CellPlan(variant.label, str(flat["strategy"]), seed, shown, {**flat, "seed": seed}) for seed in seeds
            ]
    unused = [name for name in grid if name not in used]
    if unused:
        raise ConfigError(f"knob {unused[0]!r} has no effect on any of {', '.join(v.label for v in variants)}")
    return plans


def _effective(preset: str, variant: Variant, grid: Mapping[str, Sequence[Value]]) -> list[str]:
    """Return the grid's knobs that have an effect on a variant; one that the variant itself sets is refused."""
    first = {name: values[0] for name, values in grid.items()}
    effective = [name for name in grid if _affects(preset, variant, name, first)]
    clash = next((name for name in effective if name in {**_named(variant)[1], **variant.knobs}), None)
    if clash:
        raise ConfigError(
            f"knob {clash!r} is set by variant {variant.label!r} and for the whole comparison; keep one of them"
        )
    return effective


def _named(variant: Variant) -> tuple[str, Flat]:
    """Return the strategy behind a variant, and the knobs that its name alone sets."""
    from fedlab import strategies

    line = strategies.VARIANTS.get(variant.name)
    return (line.strategy, line.knobs) if line else (variant.name, {})


def _affects(preset: str, variant: Variant, knob: str, grid: Flat) -> bool:
    """Return True for a knob of a section that this variant uses; only strategies' own sections may be unused."""
    from fedlab import strategies

    section, dot, _ = knob.rpartition(".")
    if not dot or section not in strategies.STRATEGIES:
        return True
    table, given = strategies.spelled_out(read_preset(preset)[1], {"strategy": variant.name, **grid, **variant.knobs})
    merged = {**table, **given}
    strategy = str(merged["strategy"])
    return section in (strategy, *strategies.chosen_by(strategy, merged).values())


def _checked(preset: str, variant: Variant, given: Flat, point: Flat, seed: int) -> dict[str, Value]:
    """Return a cell's checked knobs, named by their hash; an error names the cell."""
    from fedlab import strategies

    base, named = _named(variant)
    entry = strategies.find(base)
    table = read_preset(preset)[1]
    usual = {"keep_checkpoints": 1, **({} if "threads" in table else {"threads": THREADS})}
    beside = {f"{base}.{name}": value for name, value in entry.compared.items()}
    own = {**named, **given, **variant.knobs, "strategy": base, "seed": seed, "keep_start": True}
    try:
        settled = launch.settle(preset, {**usual, **beside, **own})
        labels: Flat = {}
        if entry.labelled and not launch.clients_have_labels(workloads.make(settled)):
            labels = workloads.find(str(settled["workload"])).labelled
        flat = launch.prepare(preset, {**usual, **beside, **labels, **own})
    except (ConfigError, DataError) as error:
        raise type(error)(f"{_about(variant, point)}: {error}{_hint(given, str(error))}") from None
    return {**flat, "name": config_hash({name: value for name, value in flat.items() if name not in NOT_HASHED})}


def _about(variant: Variant, given: Flat) -> str:
    return " ".join([variant.label, *(f"{name}={format_value(value)}" for name, value in given.items())])


def _hint(given: Flat, error: str) -> str:
    """Return a hint on values that hold a comma, where the error is about such a knob or names all its parts."""
    sections = launch.sections()
    meant = [k for k, v in given.items() if "," in str(v) and is_text(k, sections)]
    words = set(re.findall(r"[\w@-]+", error))
    said = [k for k in meant if k in error or {part.strip() for part in str(given[k]).split(",")} <= words]
    lists = [f"{k}='{str(given[k]).replace(',', SEPARATOR)}'" for k in said]
    return f"\nIf these are several values to compare, write {' '.join(lists)}" if lists else ""


def default_baseline(plans: Iterable[CellPlan]) -> str:
    """Return the label that others are compared with by default: of a declared lower bound, else the first."""
    from fedlab import strategies

    labels = {plan.label: plan.strategy for plan in plans}
    bounds = [label for label, strategy in labels.items() if strategies.find(strategy).baseline]
    return (bounds or list(labels))[0]


def upper_bound(plans: Iterable[CellPlan]) -> str:
    """Return the label of the upper reference, "" where none is compared."""
    from fedlab import strategies

    return next((plan.label for plan in plans if strategies.find(plan.strategy).ceiling), "")


def uses_labels(plans: Sequence[CellPlan]) -> list[str]:
    """Return the variants whose clients learn from labels; none where all do or where the workload has none."""
    from fedlab import strategies

    if not any(workloads.find(str(plan.flat["workload"])).labelled for plan in plans):
        return []
    found = dict.fromkeys(plan.label for plan in plans if strategies.find(plan.strategy).labelled)
    return [] if len(found) == len({plan.label for plan in plans}) else list(found)
