"""Benchmarks are commands that docs quote: they must start, and refuse what they do not know."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import matching, temperatures
from configs import make
from fedlab import launch
from fedlab.errors import ConfigError
from fedlab.evaluation.molecules import validity_metrics
from fedlab.inference.latent_space import LatentSpace
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.workloads.molecules import Molecules

ROOT = Path(__file__).parents[1]


def call(module, monkeypatch, *arguments):
    """Exit status of a benchmark that is started as ``python -m`` starts it, in this process: torch is imported."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "benchmarks" / f"{module}.py"), run_name="__main__")
    return end.value.code


COMMANDS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("module", COMMANDS)
def test_a_benchmark_says_what_it_does(module, monkeypatch, capsys):
    assert not call(module, monkeypatch, "--help")
    assert f"python -m benchmarks.{module}" in capsys.readouterr().out


def test_an_unknown_method_is_refused(monkeypatch, capsys):
    assert call("startup", monkeypatch, "--methods", "STARTUP, hard label") == 2
    assert "did you mean 'STARTUP, hard labels'?" in capsys.readouterr().err


def test_a_curve_is_what_the_workload_draws_at_each_value(tmp_path):
    overrides = {"data.max_examples": 300, "molecules.adjacency_layers": 1, "molecules.node_layers": 1, "seed": 4}
    run = RunDirectory.create(tmp_path, launch.prepare("graphnvp-qm9", overrides))
    with seeded("model"):
        model = make(Molecules, max_examples=300, adjacency_layers=1, node_layers=1).model()
    run.checkpoints.save(1, {"arrays": model.state_dict()}, keep=1)
    found = temperatures.curve(run.path, "molecules.latent_temperature", [0.2, 0.6], 30)
    for row, temperature in enumerate((0.2, 0.6)):
        workload = make(
            Molecules, max_examples=300, adjacency_layers=1, node_layers=1, latent_temperature=temperature, seed=4
        )
        with seeded(4, "temperatures"):
            wanted = validity_metrics(workload.draw(model.eval(), 30), workload.known())
        assert found[row].tolist() == pytest.approx(
            [wanted.get(s, float("nan")) for s in temperatures.SCORES], nan_ok=True
        )
    shown = temperatures.table({"a": np.stack([found, found])}, "molecules.latent_temperature", [0.2, 0.6], "title")
    assert shown.row_count == 2 and list(shown.columns[2].cells) == ["2", "2"]


def test_a_bound_over_test_molecules_is_the_models_and_a_matched_one_is_lower():
    workload = make(
        Molecules, max_examples=200, network="mpgvae", width=8, latent=4, message_steps=1, matching="assignment"
    )
    with seeded("model"):
        space = LatentSpace(workload, workload.model().eval(), "vae", 0)
    ordered, matched = (matching.bound(space, how, 60) for how in ("order", "assignment"))
    space.model.matching = "order"
    with seeded(0, "matching"), torch.no_grad():
        batch = workload.data(None, "test").subsample(60)[:]
        wanted = space.model.nll(batch["adjacency"], batch["nodes"]).mean().item()
    assert ordered == pytest.approx(wanted, rel=1e-4) and matched < ordered - 1
    flow = make(Molecules, max_examples=200, adjacency_layers=1, node_layers=1)
    with pytest.raises(ConfigError, match="learned a GraphNVP, and matching is of an MPGVAE"):
        matching.bound(LatentSpace(flow, flow.model(), "flow", 0), "order", 10)


def test_an_unknown_question_is_refused(monkeypatch, capsys):
    assert call("mixer", monkeypatch, "permutation") == 2
    assert "name one question: permutations or sizes; got permutation" in capsys.readouterr().err


def test_orders_of_a_molecule_are_counted_by_its_symmetries():
    assert matching.log_orders(["CCO"]) == pytest.approx(np.log(6))
    assert matching.log_orders(["COC", "CCO"]) == pytest.approx((np.log(3) + np.log(6)) / 2)
    assert matching.log_orders(["CC(C)(C)C"]) == pytest.approx(np.log(5))
