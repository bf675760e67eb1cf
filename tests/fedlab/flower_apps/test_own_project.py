"""Fedlab's own two apps in somebody's own pyproject.toml, and its strategies in Flower's own loop."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import Strategy

from fedlab.comm.tensors import tensor_record
from fedlab.engines.inprocess import LocalGrid
from fedlab.errors import ConfigError, RunError
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.run import FlowerRun
from fedlab.registry import load_config
from fedlab.training import null_progress
from flower_apps import PROJECT, write_app

OPTIONS = ["rounds=1", "threads=1", "data.max_examples=60", "server.pretrain_steps=1", "server.steps=1"]
OVERRIDES = "\\n".join(
    [*OPTIONS, "client.steps=1", "client.evaluate=false", "server.evaluate=true", "client.batch_size=8"]
)


def project(config):
    apps = PROJECT.replace("tiny.server:app", "fedlab.server.app:app").replace(
        "tiny.client:app", "fedlab.client.app:app"
    )
    return apps.partition("[tool.flwr.app.config]")[0] + f"[tool.flwr.app.config]\n{config}\n"


def run(folder, clients):
    app = FlowerRun(FlowerProject.read(folder).with_overrides({}, clients), threads=1)
    return app.run(app.create(folder / "runs"))


def test_fedlabs_apps_run_a_preset_in_somebodys_own_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fedlab.flower_apps.run.write_page", lambda result: result)
    folder = write_app(tmp_path / "app", project=project(f'preset = "fedavg-digits"\noverrides = "{OVERRIDES}"'))
    result = run(folder, 4)
    assert result.rounds[-1]["round"] == 1 and len(result.rounds[-1]["bytes"]) == 4
    assert (tmp_path / "runs").is_dir()  # the run directory of fedlab's own ServerApp


def test_without_a_preset_they_say_so(tmp_path):
    with pytest.raises(ConfigError, match="names no preset; in pyproject.toml write preset ="):
        run(write_app(tmp_path / "app", project=project("other = 1")), 2)


@pytest.mark.parametrize("preset", ["dualadapt-digits", "fedavg-digits"])
def test_a_strategy_in_flowers_own_loop_says_where_it_runs(preset):
    config = load_config(preset, {"data.max_examples": 60, "server.pretrain_steps": 1, "server.steps": 1, "threads": 1})
    server = config.plugins["strategy"].spec.server(config.workload, config, null_progress)
    server.summary = lambda: None
    arrays = tensor_record(config.workload.model().state_dict())
    with pytest.raises(RunError, match="by partition.*LocalGrid.*own two apps and a preset"):
        Strategy.start(server, LocalGrid({1: 0}), arrays, 1, 1.0, ConfigRecord(), ConfigRecord())
