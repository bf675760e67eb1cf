"""`import fedlab`: the public names, and a run by name, by file, by mapping and by object that is the same run."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import fedlab
import toy
from fedlab.errors import ConfigError
from tables import put


def test_public_names():
    assert set(dir(fedlab)) >= {
        "run",
        "resume",
        "serve",
        "classification",
        "compare",
        "predict",
        "Config",
        "Result",
        "__version__",
    }
    assert fedlab.__version__ == metadata.version("fedlab-adapt")
    with pytest.raises(AttributeError, match="no_such_name"):
        fedlab.no_such_name  # noqa: B018  # the attribute's error is what is tested


def test_a_file_a_mapping_and_options_give_the_same_bits(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    path = toy.write_preset(tmp_path, rounds=1)
    expected = fedlab.run(path, runs=tmp_path / "path").weights_sha256
    mapping = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    assert fedlab.run(mapping, runs=tmp_path / "mapping").weights_sha256 == expected
    changed = fedlab.run({**mapping, "rounds": 2}, runs=tmp_path / "options", overrides={"rounds": 1})
    assert changed.weights_sha256 == expected


def test_what_is_no_preset_or_option_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="unknown preset 'dualadapt-digit'"):
        fedlab.run("dualadapt-digit", runs=tmp_path)
    with pytest.raises(ConfigError, match="unknown option 'rnds'; did you mean 'rounds'"):
        fedlab.run("dualadapt-digits", runs=tmp_path, rnds=3)
    assert not list(tmp_path.iterdir())
