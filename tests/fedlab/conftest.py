"""A small real comparison: the toy workload, two strategies, two seeds."""

from __future__ import annotations

import pytest

import fedlab
import toy
from fedlab.comparison.cell import Cell
from fedlab.comparison.result import Comparison
from tables import put

SEEDS = (0, 1)


@pytest.fixture
def blobs(monkeypatch):
    """The toy workload in the table."""
    put(monkeypatch, "workload", "blobs", toy.SPEC)


@pytest.fixture(scope="session")
def toy_comparison(tmp_path_factory):
    """Finished runs of source_only and DualAdapt, and one cell that failed; pages keep a cache in it."""
    folder = tmp_path_factory.mktemp("comparison")
    cells = []
    with pytest.MonkeyPatch.context() as patch:
        put(patch, "workload", "blobs", toy.SPEC)
        for strategy in ("source_only", "dualadapt"):
            for seed in SEEDS:
                own = {"checkpoint.keep": 9, "strategy": strategy, "rounds": 2, "seed": seed}
                preset = folder / f"{strategy}-{seed}"
                preset.mkdir()
                known = {k: v for k, v in toy.SMALL.items() if strategy == "dualadapt" or not k.startswith("dualadapt")}
                result = fedlab.run(toy.write_preset(preset, **{**known, **own}), runs=folder / "cells")
                run = str(result.directory.relative_to(folder.resolve()))
                cells.append(Cell(strategy, strategy, seed, {}, run, "finished"))
    cells.append(Cell("fedbn", "fedbn", 0, {}, "cells/none", "failed", "the clients hold <no> labels"))
    return Comparison(
        folder.resolve(),
        "toy",
        list(SEEDS),
        "source_only",
        "accuracy",
        cells,
        command="fedlab compare toy --strategies source_only,dualadapt,fedbn --seeds 2",
        created="2026-11-24T14:00:00+0000",
        versions={"torch": "2.14.1"},
        git_commit="98ae502",
    )


@pytest.fixture
def comparison(toy_comparison, blobs):
    """The same, with its workload there."""
    return toy_comparison
