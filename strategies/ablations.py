"""Ablations by name: strategies with some options changed, to run with `strategy=NAME` and to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedlab.config.schema import Flat


@dataclass(frozen=True)
class Ablation:
    """A named change of a strategy; ``knobs`` are the options that differ, of any section."""

    strategy: str
    summary: str
    knobs: Flat


def _dualadapt(summary: str, /, average: float | None = None, **knobs: bool | int | float | str) -> Ablation:
    """Return DualAdapt with some of its own options changed, or the decay of the averaged model."""
    changed = {f"dualadapt.{name}": value for name, value in knobs.items()}
    return Ablation("dualadapt", summary, changed if average is None else {**changed, "server.average": average})


ABLATIONS: Mapping[str, Ablation] = {
    "dualadapt_global_labels": _dualadapt("labels of F_g itself", pseudo_labels="global", balance=0.0),
    "dualadapt_source_statistics": _dualadapt(
        "labels of F_g itself, the source's statistics", pseudo_labels="global", balance=0.0, own_statistics=0.0
    ),
    "dualadapt_no_statistics": _dualadapt("no own statistics", own_statistics=0.0),
    "dualadapt_no_balance": _dualadapt("no class balance", balance=0.0),
    "dualadapt_no_weights": _dualadapt("no mixture weights", client_weights=False, server_weights=False),
    "dualadapt_one_component": _dualadapt("one component a mixture", components=1),
    "dualadapt_no_client_discrepancy": _dualadapt("no client discrepancy", client_discrepancy=0.0),
    "dualadapt_no_server_discrepancy": _dualadapt("no server discrepancy", server_discrepancy=0.0),
    "dualadapt_no_mixup": _dualadapt("mixup off: pseudo-targets are source images", mixup="off"),
    "dualadapt_mixup_difference": _dualadapt("mixup by difference", mixup="difference"),
    "dualadapt_no_average": _dualadapt("no average (EMA) of G", average=0.0),
    "dualadapt_no_control": _dualadapt("without its source-only baseline, half the server's work", control=False),
}


def expand_ablation(preset: Flat, overrides: Flat) -> tuple[Flat, Flat]:
    """Return a preset and its overrides with an ablation, if `strategy` names one, merged into the preset."""
    ablation = ABLATIONS.get(str({**preset, **overrides}.get("strategy")))
    if ablation is None:
        return preset, overrides
    others = {key: value for key, value in overrides.items() if key != "strategy"}
    return {**preset, **ablation.knobs, "strategy": ablation.strategy}, others
