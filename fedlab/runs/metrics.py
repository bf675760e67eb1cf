"""The table of a run's declared metrics and phases: look-ups by the names that the run reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from fedlab.errors import name_list, plural
from fedlab.metrics import COMMON_METRICS, COMMON_PHASES, FRACTION, UNDECLARED_ORDER, Declares, Metric, Phase, Role
from fedlab.runs.client_distribution import natural_key


@dataclass(frozen=True)
class MetricTable:
    """Declared metrics and phases with look-ups by the names that runs report; the first declaration of a name counts.

    >>> table = MetricTable((Metric("accuracy", unit=FRACTION, higher_is_better=True), Metric("*_average", "average")))
    >>> table.title("accuracy_average"), table.direction("accuracy_average"), table.format("accuracy_average", 0.5)
    ('average', 1, '50.0 %')
    """

    metrics: tuple[Metric, ...] = ()
    phases: tuple[Phase, ...] = ()
    _found: dict[str, tuple[Metric, Metric | None]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> MetricTable:
        """Read the table from a run's manifest; only what is common to all runs where an older one has none."""
        return cls(
            _parse(Metric, manifest["metrics"]) if "metrics" in manifest else COMMON_METRICS,
            _parse(Phase, manifest["phases"]) if "phases" in manifest else COMMON_PHASES,
        )

    def to_manifest(self) -> dict[str, list[dict[str, Any]]]:
        """Return the manifest's fields "metrics" and "phases" as plain JSON."""
        return {"metrics": list(map(asdict, self.metrics)), "phases": list(map(asdict, self.phases))}

    @classmethod
    def declared(cls, *specs: Declares) -> MetricTable:
        """Return what a run's strategy and workload declare, with what is common to all runs."""
        tables = [cls(spec.metrics, spec.phases) for spec in specs]
        return cls.merged([*tables, cls(COMMON_METRICS, COMMON_PHASES)])

    @classmethod
    def merged(cls, tables: Iterable[MetricTable]) -> MetricTable:
        """Merge several tables; a name that several declare is as the first one has it."""
        tables = list(tables)
        metrics = {metric.name: metric for table in reversed(tables) for metric in reversed(table.metrics)}
        phases = {phase.name: phase for table in reversed(tables) for phase in reversed(table.phases)}
        return cls(tuple(reversed(metrics.values())), tuple(reversed(phases.values())))

    # --- one metric ---

    def find(self, name: str) -> Metric:
        """Return what is declared of a reported name; the metric of an unknown name has that name and nothing else."""
        base, variant = self._split(name)
        title = base.title or base.name.replace("_", " ")
        if variant is None:
            return replace(base, name=name, title=title, group=base.group or name)
        part = variant.title or self.variant(name).replace("_", " ")
        return replace(
            base,
            name=name,
            title=part if base.unit == FRACTION and base.role == "result" else f"{title} {part}",
            group=base.group or base.name,
            role=variant.role if variant.role != "result" else base.role,
            note=variant.note,
        )

    def variant(self, name: str) -> str:
        """Return the variant of a name: "average" of "accuracy_average"; "" where it is none."""
        base, variant = self._split(name)
        return name.removeprefix(f"{base.name}_") if variant else ""

    @property
    def variants(self) -> list[Metric]:
        """The declared variants that are results, in the order of their declaration."""
        return [metric for metric in self.metrics if metric.is_variant and metric.role == "result"]

    def group(self, name: str) -> str:
        """Return what a metric is compared by."""
        return self.find(name).group

    def title(self, name: str) -> str:
        """Return a metric's name for people; of a variant of a fraction, the variant's alone."""
        return self.find(name).title

    def full_title(self, name: str) -> str:
        """Return a metric's name where it stands alone: of a variant of a fraction, the group with it in brackets.

        >>> table = MetricTable((Metric("accuracy", unit=FRACTION), Metric("*_average", "average")))
        >>> table.title("accuracy_average"), table.full_title("accuracy_average"), table.full_title("loss")
        ('average', 'accuracy (average)', 'loss')
        """
        if not self.variant(name) or not self.is_fraction(name):
            return self.title(name)
        return f"{self.title(self.group(name))} ({self.title(name)})"

    def heading(self, name: str) -> str:
        """Return the title with an arrow in the direction that is better, where percents do not say it."""
        metric = self.find(name)
        if metric.higher_is_better is None or (metric.higher_is_better and metric.unit == FRACTION):
            return metric.title
        return f"{metric.title} {'↑' if metric.higher_is_better else '↓'}"

    def is_fraction(self, name: str) -> bool:
        """Return True for a value in [0, 1] that is written in percent."""
        return self.find(name).unit == FRACTION

    def direction(self, name: str) -> int:
        """Return 1 where more of a metric is better, -1 where less is, 0 where that is not known."""
        return {True: 1, False: -1, None: 0}[self.find(name).higher_is_better]

    def role(self, name: str) -> Role:
        """Return the role of a metric."""
        return self.find(name).role

    def format(self, name: str, value: float) -> str:
        """Return a value for people: fractions in percent, margins of them in points, others with their unit."""
        metric = self.find(name)
        if metric.role == "margin":
            return f"± {100 * value:.1f}" if metric.unit == FRACTION else f"± {value:.3g}"
        return f"{100 * value:.1f} %" if metric.unit == FRACTION else f"{value:.4g} {metric.unit}".rstrip()

    def best_as_shown(self, name: str, values: Iterable[float]) -> set[str]:
        """Return the best of several values of a metric as it is written: what a table has in bold.

        Equal as written is equal, so that no reader sees two same numbers of which one is bold. Empty without a
        direction, or with fewer than two numbers.
        """
        known, direction = [float(value) for value in values if math.isfinite(value)], self.direction(name)
        if not direction or len(known) < 2:
            return set()
        return {self.format(name, max(known) if direction > 0 else min(known))}

    # --- many metrics ---

    def sorted(self, names: Iterable[str]) -> list[str]:
        """Return names in the order of reading, without hidden ones."""
        return sorted((name for name in set(names) if self.role(name) != "hidden"), key=self._place)

    def shown(self, names: Sequence[str], *, margins: bool = True) -> list[str]:
        """Return the names for a table, or without margins for a line: auxiliary ones only if there is nothing else."""
        wanted = ("result", "reference", "margin") if margins else ("result", "reference")
        known = [name for name in names if self.role(name) in wanted]
        return known or [name for name in names if self.role(name) != "hidden"]

    def zeros(self, clients: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Return a sentence for each metric that says what clients did whose value is 0, with their names.

        >>> MetricTable((Metric("kept", when_zero="threw it away"),)).zeros({"a": {"kept": 0.0}, "b": {"kept": 1.0}})
        ['1 of 2 clients threw it away: a']
        """
        found = []
        for metric in self.metrics:
            values = {client: known[metric.name] for client, known in clients.items() if metric.name in known}
            names = [client for client, value in values.items() if value == 0]
            if metric.when_zero and names:
                found.append(f"{len(names)} of {plural(len(values), 'client')} {metric.when_zero}: {name_list(names)}")
        return found

    def judged(self) -> list[str]:
        """Return what a run can be judged by: groups, then names and patterns, of which it is known what is better.

        >>> accuracy = Metric("accuracy", unit=FRACTION, higher_is_better=True, group="quality")
        >>> MetricTable((accuracy, Metric("*_average", "average"), Metric("size"))).judged()
        ['quality', 'accuracy', 'accuracy_average']
        """
        plain = [metric for metric in self.metrics if not metric.is_variant and metric.higher_is_better is not None]
        plain = sorted((metric for metric in plain if metric.role != "hidden"), key=lambda metric: metric.order)
        results = [metric for metric in plain if metric.role == "result"]
        variants = [one.name.removeprefix("*") for one in self.metrics if one.is_variant and one.role != "margin"]
        groups = [metric.group or metric.name for metric in results]
        names = [metric.name for metric in plain]
        return list(dict.fromkeys([*groups, *names, *(one.name + end for one in results for end in variants)]))

    def primary_metric(self, names: Sequence[str]) -> str:
        """Return the one metric that a short line shows: the best informed of the first group; "" for no names."""
        ranked = self.sorted(name for name in names if self.role(name) != "margin")
        results = [name for name in ranked if self.role(name) == "result"]
        candidates = results or ranked or list(names)
        if not candidates:
            return ""
        group = self.group(candidates[0])
        return [name for name in candidates if self.group(name) == group][-1]

    def primary_scores(self, score: Mapping[str, float]) -> list[str]:
        """Return the names of a score that a short line shows: those declared by their whole name, with a direction.

        Auxiliary ones, such as the loss of a test, only if there is nothing else.
        """
        declared = {metric.name for metric in self.metrics}
        known = [name for name in score if name in declared and self.direction(name)]
        return [name for name in known if self.role(name) != "auxiliary"] or known

    def reference(self, names: Iterable[str], name: str) -> str:
        """Return the one of ``names`` that is the reference of a metric; "" where there is none."""
        group = self.group(name)
        return next((n for n in names if n != name and self.group(n) == group and self.role(n) == "reference"), "")

    def reference_title(self, name: str) -> str:
        """Return what a reference is, without the metric that it is the reference of."""
        _, variant = self._split(name)
        return variant.title if variant and variant.title else self.title(name)

    # --- phases ---

    def phase_title(self, name: str) -> str:
        """Return a phase's name for people."""
        return next((phase.title for phase in self.phases if phase.name == name), name)

    def phase_note(self, name: str) -> str:
        """Return the line that a log has for a phase; "" for none."""
        return next((phase.note or phase.title for phase in self.phases if phase.name == name and phase.logged), "")

    @property
    def evaluation_phases(self) -> frozenset[str]:
        """Names of the phases whose seconds are left out of budgets and tables."""
        return frozenset(phase.name for phase in self.phases if phase.evaluation)

    # --- look-up ---

    def _split(self, name: str) -> tuple[Metric, Metric | None]:
        """Return the declared metric behind a name, and the variant of it that the name stands for."""
        if name not in self._found:
            self._found[name] = self._look_up(name)
        return self._found[name]

    def _look_up(self, name: str) -> tuple[Metric, Metric | None]:
        plain = [metric for metric in self.metrics if not metric.is_variant]
        exact = next((metric for metric in plain if metric.name == name), None)
        if exact:
            return exact, None
        for variant in (metric for metric in self.metrics if metric.is_variant):
            stems = [metric for metric in plain if fnmatchcase(name, metric.name + variant.name.removeprefix("*"))]
            if stems:
                return max(stems, key=lambda metric: len(metric.name)), variant
        family = next((metric for metric in plain if "*" in metric.name and fnmatchcase(name, metric.name)), None)
        return (replace(family, name=name), None) if family else (Metric(name, order=UNDECLARED_ORDER), None)

    def _place(self, name: str) -> tuple[int, str, int, list[tuple[int, str]]]:
        """Return the key by which names are sorted."""
        base, variant = self._split(name)
        return base.order, base.group or base.name, variant.order if variant else 0, natural_key(name)


def _parse(kind: type[Any], entries: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
    """Return the entries of a manifest as dataclasses; a field of another version is left out."""
    known = {item.name for item in fields(kind)}
    return tuple(kind(**{name: value for name, value in entry.items() if name in known}) for entry in entries)


def mean_over(clients: Mapping[str, Mapping[str, float]], without: Sequence[str] = ()) -> dict[str, float]:
    """Return the unweighted mean of each metric over the clients that reported it, but for counts in ``without``."""
    names = {name for metrics in clients.values() for name in metrics} - set(without)
    reported = {name: [metrics[name] for metrics in clients.values() if name in metrics] for name in sorted(names)}
    return {name: sum(values) / len(values) for name, values in reported.items()}
