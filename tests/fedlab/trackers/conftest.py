"""A run of the toy workload, tracked."""

from __future__ import annotations

import pytest

import fedlab
import toy
from tables import put

OPTIONS = {"workload": "blobs", "strategy": "source_only", "threads": 1, "rounds": 2, "name": "toy", "report": False}
OPTIONS |= {"server.pretrain_steps": 2, "server.steps": 2}


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Runs with a tracker, and a comparison of two seeds."""
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.setattr("fedlab.comparison.files.write_files", lambda comparison: None)

    def run(track, compare=False, **changes):
        if compare:
            preset = tmp_path / "pair.toml"
            preset.write_text(
                'workload = "blobs"\nrounds = 1\nreport = false\n[server]\npretrain_steps = 2\nsteps = 2\n'
            )
            out = tmp_path / "comparisons" / "pair"
            return fedlab.compare(str(preset), "source_only", seeds=2, jobs=1, out=out, overrides={"track": track})
        return fedlab.run({**OPTIONS, "track": track, **changes}, runs=tmp_path / "runs")

    return run
