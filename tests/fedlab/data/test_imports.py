"""Data, models and metrics import no heavy library before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("data", "models", "losses", "diffusion", "evaluation")
MOLECULES = ("fedlab.data.molecules.", "fedlab.evaluation.latent_plots", "fedlab.evaluation.molecule")
CODE = """
import importlib, json, sys
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted({"rdkit", "rdkit.Chem.Draw", "matplotlib", "pandas"} & sys.modules.keys())))
"""


def modules():
    for package in PACKAGES:
        for path in sorted((ROOT / "fedlab" / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("molecules", [False, True])
def test_drawing_is_imported_late_and_rdkit_only_with_molecules(molecules):
    names = [name for name in modules() if molecules or not name.startswith(MOLECULES)]
    assert len(names) > 40
    command = [sys.executable, "-c", CODE, json.dumps(names)]
    loaded = set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert loaded == ({"rdkit"} if molecules else set())
