"""The engine of an app's clients, as it is written among the overrides of its run config."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedlab.cli.app import app
from fedlab.engines import ray_cluster
from fedlab.errors import ConfigError
from fedlab.flower_apps.engine import AppEngine
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.run import FlowerRun
from flower_apps import write_app


def test_the_engine_and_its_options_are_no_entries_of_the_run_config():
    engine, rest = AppEngine.split({"engine": "ray", "ray.cpus": "0.5", "lr": "1"}, {"lr": 0.1})
    assert (engine.name, engine.parsed().cpus, rest) == ("ray", 0.5, {"lr": "1"})
    assert engine.written() == ["engine=ray", "ray.cpus=0.5"] and AppEngine().written() == []


def test_an_app_keeps_entries_of_its_own_that_are_called_so():
    engine, rest = AppEngine.split({"engine": "diesel"}, {"engine": "petrol"})
    assert engine == AppEngine() and rest == {"engine": "diesel"}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"engine": "grpc"}, "carries fedlab's own apps only.*engine=inprocess or pool or ray"),
        ({"engine": "rya"}, "did you mean 'ray'"),
        ({"engine": "ray", "ray.adress": "a:1"}, "has no option 'ray.adress'; did you mean 'ray.address'"),
        ({"engine": "ray", "ray.cpus": "none"}, "ray.cpus"),
        ({"engine": "ray", "ray.cpus": [1, 2]}, "one for all runs"),
    ],
)
def test_bad_input_is_a_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AppEngine.split(overrides, {})


def test_what_the_engine_lacks_is_told_before_a_directory_is_made(tmp_path, monkeypatch):
    project = FlowerProject.read(write_app(tmp_path / "app"))
    run = FlowerRun(project, threads=1, engine=AppEngine("ray", {"ray.address": "127.0.0.1:1"}))
    with pytest.raises(ConfigError, match="no Ray cluster answers at 127.0.0.1:1"):
        run.create(tmp_path / "runs")
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="need the package ray: pip install"):
        run.create(tmp_path / "runs")
    both = CliRunner().invoke(app, ["flower", str(project.path), "engine=ray", "--workers", "2"])
    assert both.exit_code and "engine=ray is given too" in " ".join(str(both.output).split())
    assert not (tmp_path / "runs").exists()
