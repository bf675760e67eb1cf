"""What ships: Flower's run config, the app references, the size of the embedded data, pinned versions."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from flwr.supercore import object_ref

from fedlab.data.digits.datasets import EMBEDDED
from fedlab.launch import APPS
from fedlab.registry import app_config, config_from_text

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_what_flwr_run_runs_is_two_keys_that_resolve():
    written = PYPROJECT["tool"]["flwr"]["app"]["config"]
    assert written == {"preset": "dualadapt-digits", "overrides": ""}
    assert config_from_text(*app_config(written)).run.name == "dualadapt-digits"
    assert config_from_text(*app_config({**written, "overrides": "rounds = 3\ndata.alpha = 0.1"})).run.rounds == 3


def test_flower_finds_the_apps():
    components = PYPROJECT["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": APPS.server, "clientapp": APPS.client}
    for reference in components.values():
        valid, reason = object_ref.validate(reference, check_module=True)
        assert valid, reason


def test_the_embedded_data_fits_into_seventeen_megabytes():
    """Digits and characters 10.6, PACS 2.8, CamVid 1.9, Office-Caltech10 0.3: real domains run without a download."""
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 17_000_000


def test_constraints_pin_versions_and_name_no_place():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+-]+", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    needed = [re.split(r"[ \[<>=!;]", wanted)[0] for wanted in metadata.requires("fedlab-adapt") or []]
    assert {name.lower().replace("_", "-") for name in needed} <= pinned
