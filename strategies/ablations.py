"""Ablations by name: strategies with some options changed, to run with `strategy=NAME` and to compare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedlab.config.sections import Overrides


@dataclass(frozen=True)
class Ablation:
    """A named change of a strategy; ``options`` are the options that differ, of any section."""

    strategy: str
    summary: str
    options: Overrides


def _dualadapt(summary: str, /, ema_decay: float | None = None, **options: bool | int | float | str) -> Ablation:
    """Return DualAdapt with some of its own options changed, or the decay of the averaged model."""
    changed = {f"dualadapt.{name}": value for name, value in options.items()}
    return Ablation("dualadapt", summary, changed if ema_decay is None else {**changed, "server.ema_decay": ema_decay})


ABLATIONS: Mapping[str, Ablation] = {
    "dualadapt_global_labels": _dualadapt("labels of F_g itself", pseudo_labels="global", class_balance=0.0),
    "dualadapt_source_statistics": _dualadapt(
        "labels of F_g itself, the source's statistics", pseudo_labels="global", class_balance=0.0, bn_adaptation=0.0
    ),
    "dualadapt_no_statistics": _dualadapt("no own statistics", bn_adaptation=0.0),
    "dualadapt_no_balance": _dualadapt("no class balance", class_balance=0.0),
    "dualadapt_no_weights": _dualadapt("no mixture weights", client_weights=False, server_weights=False),
    "dualadapt_one_component": _dualadapt("one component a mixture", components=1),
    "dualadapt_no_client_discrepancy": _dualadapt("no client discrepancy", client_discrepancy=0.0),
    "dualadapt_no_server_discrepancy": _dualadapt("no server discrepancy", server_discrepancy=0.0),
    "dualadapt_no_mixup": _dualadapt("mixup off: pseudo-targets are source images", mixup="off"),
    "dualadapt_mixup_difference": _dualadapt("mixup by difference", mixup="difference"),
    "dualadapt_no_average": _dualadapt("no average (EMA) of G", ema_decay=0.0),
    "dualadapt_paper": _dualadapt(
        "the published pseudo-code line by line",
        ema_decay=0.0,
        pseudo_labels="global",
        class_balance=0.0,
        bn_adaptation=0.0,
        server_discrepancy=1.0,
        server_steps="separate",
    ),
    "dualadapt_no_control": _dualadapt(
        "without its source-only baseline, half the server's work", source_only_twin=False
    ),
}


def expand_ablation(preset: Overrides, overrides: Overrides) -> tuple[Overrides, Overrides]:
    """Return a preset and its overrides with an ablation, if `strategy` names one, merged into the preset."""
    ablation = ABLATIONS.get(str({**preset, **overrides}.get("strategy")))
    if ablation is None:
        return preset, overrides
    others = {key: value for key, value in overrides.items() if key != "strategy"}
    return {**preset, **ablation.options, "strategy": ablation.strategy}, others
