"""What the page says in words and tables.

**Metrics** are generic: shares (``fedlab.runs.result.FAMILIES``) of one family are compared, more is better; of any
other
number it is not known which way is better. What was not measured stays a gap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedlab.runs.progress import elapsed
from fedlab.runs.result import Result, family, foremost, headline, is_share, label, metric_names, predictor, shown

MISSING = "-"
WORDS = {  # metrics whose names are not for people
    "accuracy": "accuracy",
    "miou": "mean IoU",
    "frechet": "Fréchet distance",
    "valid_unique_novel": "share that is valid, unique and novel",
}


@dataclass(frozen=True)
class TableCell:
    """One value of a table; ``value`` is what it is sorted by, ``heat`` how far it is coloured, in [0, 1]."""

    text: str
    best: bool = False
    value: float | None = None
    heat: float | None = None
    drawing: Markup | None = None


@dataclass(frozen=True)
class ColumnHeader:
    """A column that sorts its table; ``first`` is the direction of the first click."""

    text: str
    key: str
    first: str = "ascending"


@dataclass(frozen=True)
class TableRow:
    """One row of a table; ``slot`` is its colour where the table is a figure's legend."""

    head: str
    cells: list[TableCell]
    slot: int = 0


def client_names(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every client that was ever there, in the order of partitions."""
    return list(dict.fromkeys(name for record in rounds for kind in ("bytes", "clients") for name in record[kind]))


def summary(result: Result) -> str:
    """The run in one sentence."""
    first, last = result.rounds[0], result.rounds[-1]
    done, planned = last["round"], result.config.get("rounds", last["round"])
    what = f"{result.config.get('strategy', 'a strategy')} on {result.config.get('workload', 'a workload')}"
    rounds = f"{done} of {planned} rounds" if done != planned else f"{done} round{'s' * (done != 1)}"
    when = f"After {rounds} of {what}" if done else f"Before the first round of {what}"
    clients = len(client_names(result.rounds))
    whose = f"over {clients} clients" if clients != 1 else "of the one client"
    score = result.score()
    if foremost(score):
        said = ", ".join(f"{label(name)} {shown(name, score[name])}" for name in foremost(score))
        return f"{when}, what the global model draws has {said}."
    names = [name for name in metric_names(result.rounds) if name in last["mean"]]
    if not names:
        return f"{when}, no client has reported a metric."
    name = headline(names)
    value = last["mean"][name]
    mean = "" if clients == 1 or _measure(name).startswith("mean ") else "mean "
    sentence = f"{when}, {mean}{_measure(name)} {whose} is {shown(name, value)}"
    twin = f"{family(name)}_source_only"
    control = last["mean"].get(twin)
    if control is not None and is_share(name) and predictor(name) and name != twin:
        return f"{sentence}, {_points(value - control)} training on the source alone ({shown(name, control)})."
    if done and name in first["mean"] and first["round"] == 0:
        return f"{sentence}; it was {shown(name, first['mean'][name])} before the first round."
    return f"{sentence}."


def in_words(metric: str) -> str:
    """A metric, or a family of metrics, for people."""
    return WORDS.get(metric, label(metric))


def _measure(name: str) -> str:
    words = WORDS.get(family(name), label(name))
    return f"{words} ({label(name)})" if is_share(name) and predictor(name) else words


def judged(rounds: list[dict[str, Any]]) -> str:
    """The family of shares that a run is judged by; empty where its clients report none."""
    name = headline(metric_names(rounds))
    return family(name) if is_share(name) else ""


def _points(difference: float) -> str:
    size = f"{abs(100 * difference):.1f}"
    if size == "0.0":
        return "level with"
    return f"{size} point{'s' * (size != '1.0')} {'above' if difference > 0 else 'below'}"


def results_table(result: Result) -> tuple[list[str], list[TableRow]]:
    """Column heads, then a row for each client and one for the mean, after the last round."""
    last, names = result.rounds[-1], metric_names(result.rounds)
    clients = {client: last["clients"].get(client, {}) for client in client_names(result.rounds)}
    counted = any("num-examples" in values for values in clients.values())
    rows = []
    for head, values in [*clients.items(), ("mean", last["mean"])]:
        count = values.get("num-examples")
        examples = [TableCell(f"{count:,.0f}".replace(",", "\u202f") if count is not None else "")] if counted else []
        rows.append(TableRow(head, [*_cells(names, values), *examples]))
    return [*map(label, names), *(["test examples"] if counted else [])], rows


def _cells(names: Sequence[str], values: Mapping[str, float]) -> list[TableCell]:
    """A row's values; the best of its accuracies is marked where there is something to compare."""
    first = next((family(name) for name in names if is_share(name)), "")
    rivals = {n: values[n] for n in names if family(n) == first and math.isfinite(values.get(n, math.nan))}
    # Equal as shown is equal: no reader should see two same numbers, one of them bold.
    best = {shown(name, value) for name, value in rivals.items() if value == max(rivals.values()) and len(rivals) > 1}
    texts = {name: shown(name, values[name]) if name in values else MISSING for name in names}
    return [TableCell(text, name in rivals and text in best) for name, text in texts.items()]


def failures(result: Result) -> list[tuple[int, str, int, str]]:
    """Round, client, partition and reason of each failure of a client."""
    return [
        (record["round"], failure["client"], failure["partition"], str(failure["reason"]))
        for record in result.rounds
        for failure in record.get("failures", ())
    ]


def facts(result: Result) -> dict[str, str]:
    """What is known of the run as a whole, by its name; nothing is said of what is not known."""
    manifest = result.manifest
    table = {
        "seed": result.config.get("seed", manifest.get("seed", "")),
        "engine": manifest.get("engine", ""),
        "device": manifest.get("device", ""),
        "machine": manifest.get("machine", ""),
        "started": _time(manifest.get("started", manifest.get("created", ""))),
        "ended": _time(manifest.get("ended", "")),
        "resumed": _time(manifest.get("resumed", "")),
        "took": elapsed(sum(result.seconds().values())),
        "git commit": str(manifest.get("git_commit", "")).replace("-dirty", ", with uncommitted changes"),
        "weights (SHA-256)": result.weights_sha256,
    }
    return {name: str(value) for name, value in table.items() if value != ""}


def _time(stamp: object) -> str:
    """``2026-11-23T13:02:38+0000`` with a space where a reader wants one."""
    return str(stamp or "").replace("T", " ").replace("+0000", " UTC")
