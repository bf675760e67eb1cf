"""What the build of the image takes from this machine; that it builds is tests/test_containers.py."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from scripts import build_image, podman

ROOT = Path(__file__).parents[2]


def test_the_stand_in_for_the_base_image_has_its_python():
    base = build_image.base_image((ROOT / "Dockerfile").read_text())
    assert base.removeprefix("python:").removesuffix("-slim") in build_image.RELEASES


def test_the_build_gets_the_sources_of_packages_that_pip_has_here(tmp_path, monkeypatch):
    wheels, listed, index = tmp_path / "wheels", tmp_path / "pins.txt", tmp_path / "index" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    listed.touch()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{wheels} file://{tmp_path}/none")
    monkeypatch.setenv("PIP_CONSTRAINT", str(listed))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file://{index}")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")  # says nothing about sources
    settings = build_image.pip_settings()
    assert build_image.local_paths(settings) >= {wheels, listed, index.parent}  # whose pages name files beside it
    written = configparser.ConfigParser()
    written.read_string(build_image.pip_conf(settings))
    assert written["global"]["find-links"].split() == [str(wheels), f"file://{tmp_path}/none"]
    assert written["global"]["constraint"] == str(listed) and "require-virtualenv" not in written["global"]


def test_a_machine_without_podman_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(podman.NoContainersError, match="apt|Debian: podman"):
        podman.Podman()
