"""The examples keep the contracts, run as their first lines say, and are short."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

import fedlab
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.run import FlowerRun
from fedlab.testing import check_strategy, check_workload
from photos import HUES, write_photos

EXAMPLES = Path(__file__).parents[1] / "examples"
LONGEST = 60  # lines, those of the description and blank ones not counted
TINY = {"rounds": 1, "data.max_examples": 200, "client.steps": 2, "client.batch_size": 16, "threads": 1}


@pytest.fixture(autouse=True)
def _in_the_folder(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: path.stem)
def test_they_are_short(path):
    code = path.read_text(encoding="utf-8").split('"""', 2)[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) < LONGEST


def test_own_aggregation_rule(tmp_path):
    rule = importlib.import_module("own_aggregation_rule")
    check_strategy(rule.SPEC)
    options = {**TINY, "own_aggregation_rule.power": 0.0}
    plain = fedlab.run("fedavg-digits", strategy=rule.SPEC, runs=tmp_path, overrides=options)
    weighted = fedlab.run("fedavg-digits", strategy="own_aggregation_rule:SPEC", runs=tmp_path, overrides=TINY)
    assert plain.weights_sha256 != weighted.weights_sha256


def test_the_power_one_is_fedavg(tmp_path):
    options = {**TINY, "own_aggregation_rule.power": 1.0}
    own = fedlab.run("fedavg-digits", strategy="own_aggregation_rule:SPEC", runs=tmp_path, overrides=options)
    assert own.weights_sha256 == fedlab.run("fedavg-digits", runs=tmp_path, overrides=TINY).weights_sha256


def test_own_strategy(tmp_path):
    check_strategy(importlib.import_module("own_strategy").SPEC)
    own = fedlab.run("fedavg-digits", strategy="own_strategy:SPEC", runs=tmp_path, overrides=TINY)
    usual = fedlab.run("fedavg-digits", runs=tmp_path, overrides=TINY)
    assert own.bytes("train_up") < 0.3 * usual.bytes("train_up")


def test_own_model(tmp_path):
    module = importlib.import_module("own_model")
    check_workload(module.SPEC)
    options = {
        **TINY,
        "server.pretrain_steps": 2,
        "server.steps": 1,
        "own_model.targets": "optdigits",
        "own_model.width": 8,
    }
    result = fedlab.run("dualadapt-digits", workload="own_model:SPEC", runs=tmp_path, overrides=options)
    assert result.model().head.in_features == 8


def test_own_photos(tmp_path):
    root = write_photos(tmp_path / "photos")
    options = {**TINY, "data.root": str(root), "server.pretrain_steps": 2, "server.steps": 1, "own_photos.width": 8}
    for strategy in ("dualadapt", "adabn"):
        chosen = {"workload": "own_photos:SPEC", "strategy": strategy}
        result = fedlab.run("adapt-photos", runs=tmp_path, overrides=options, **chosen)
        assert result.model().head.in_features == 8
    (found,) = result.predictor("alice").predict([root / "targets" / "alice" / "sky" / "0.png"])
    assert found.name in HUES


def test_own_workload(tmp_path):
    module = importlib.import_module("own_workload")
    check_workload(module.SPEC)
    result = fedlab.run("own_workload:PRESET", runs=tmp_path, rounds=3, overrides={"data.num_clients": 2})
    errors = [record["mean"]["mae"] for record in result.rounds]
    assert errors[-1] < errors[0]
    assert result.metric_table.direction("mae") < 0
    assert list(result.rounds[0]["clients"]) == ["clinic-0", "clinic-1"]


@pytest.mark.engine
@pytest.mark.parametrize("name", ["adaptation", "comparison"])
def test_a_notebook_runs_and_has_its_outputs(name, tmp_path, monkeypatch):
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    kinds = {
        kind for cell in cells for output in cell["outputs"] for kind in output.get("data", [output["output_type"]])
    }
    assert kinds >= {"stream", "image/png", "text/html"} and "error" not in kinds
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": name}
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), namespace)
        value = eval(compile(ast.Expression(last.value), name, "eval"), namespace) if last else None
        if hasattr(value, "_repr_html_"):
            assert value._repr_html_()


def test_a_plain_flower_app_uses_a_workload(tmp_path):
    code = (EXAMPLES / "flower_app" / "digits_app.py").read_text(encoding="utf-8").split('"""', 2)[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) < 40
    tiny = {"num-server-rounds": 1, "local-steps": 2}
    run = FlowerRun(FlowerProject.read(EXAMPLES / "flower_app").with_overrides(tiny, clients=2), threads=1)
    result = run.run(run.create(tmp_path))
    assert set(result.final()["client-1"]) >= {"accuracy", "train_loss"} and result.rounds[-1]["round"] == 1
