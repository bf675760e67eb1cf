"""What a folder's pyproject.toml says of a Flower app, and what is refused."""

from __future__ import annotations

import pytest

from fedlab.errors import ConfigError
from fedlab.flower_apps.project import FlowerProject
from flower_apps import PROJECT, write_app


@pytest.fixture
def project(tmp_path):
    return FlowerProject.read(write_app(tmp_path / "app"))


def test_an_app_has_its_references_its_flat_config_and_its_clients(project):
    assert (project.name, project.server, project.client) == ("tiny-app", "tiny.server:app", "tiny.client:app")
    assert project.config == {"num-server-rounds": 2, "learning-rate": 0.5, "verbose": False, "model.name": "line"}
    assert project.clients == 3


def test_an_app_that_names_no_federation_has_as_many_clients_as_flower_starts(tmp_path):
    text = PROJECT.partition("[tool.flwr.federations]")[0]
    assert FlowerProject.read(write_app(tmp_path / "app", project=text)).clients == 10


def test_overrides_have_the_type_of_what_they_replace(project):
    given = {"num-server-rounds": "5", "learning-rate": "1", "verbose": "True", "model.name": "'a b'"}
    found = project.with_overrides(given)
    assert found.config == {"num-server-rounds": 5, "learning-rate": 1.0, "verbose": True, "model.name": "a b"}
    assert isinstance(found.config["learning-rate"], float)
    assert project.with_overrides({"federation.num-supernodes": "7"}).clients == 7
    assert project.with_overrides({}, clients=2).clients == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num-server-round": "5"}, "has no 'num-server-round'; did you mean 'num-server-rounds'"),
        ({"num-server-rounds": "2.5"}, "got '2.5'; a whole number"),
        ({"learning-rate": "fast"}, "got 'fast'; a number"),
        ({"verbose": "maybe"}, "true or false"),
        ({"federation.num-supernodes": "0"}, "at least 1"),
    ],
)
def test_an_override_that_does_not_fit_is_refused(project, overrides, message):
    with pytest.raises(ConfigError, match=message):
        project.with_overrides(overrides)


def test_a_requirement_is_found_by_the_name_of_what_is_imported(project):
    assert project.requirement("no_such_package").startswith("no-such-package[extra]")
    assert project.requirement("package").startswith("no-such-package")  # brought by what has it in its name
    assert project.requirement("torch") == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[project", "not valid TOML"),
        ("[project]\nname = 'x'\n", "names no serverapp"),
        (PROJECT.replace("tiny.client:app", "tiny.client"), "names no clientapp"),
        (PROJECT.replace('"line"', "[1, 2]"), "a bool, an int, a float or a string"),
    ],
)
def test_a_folder_that_holds_no_app_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        FlowerProject.read(write_app(tmp_path / "app", project=text))


def test_a_folder_without_a_project_or_none_at_all(tmp_path):
    with pytest.raises(ConfigError, match="no Flower app: it has no pyproject.toml"):
        FlowerProject.read(tmp_path)
    with pytest.raises(ConfigError, match="is no folder"):
        FlowerProject.read(tmp_path / "none")
