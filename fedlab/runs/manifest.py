"""Manifest of a run: status, versions, git commit, seed, engine, device, times, SHA-256 of the final weights."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from fedlab.errors import RunError
from fedlab.files import write_atomically

MANIFEST = "manifest.json"
PACKAGES = ("fedlab-adapt", "flwr", "torch", "torchvision", "numpy", "scikit-learn", "ray", "grpcio")


def read_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a run directory; empty where there is none.

    Raises
    ------
    RunError
        When the file is damaged.
    """
    path = run / MANIFEST
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete it, and `fedlab resume {run}` goes on") from None


def check_is_ours(run: Path) -> None:
    """Refuse the directory of a run whose model and state are of another program: the manifest has its ``command``.

    Raises
    ------
    RunError
        With that command, which does the run again.
    """
    if command := read_manifest(run).get("command"):
        raise RunError(
            f"{run} is a run of a Flower app, which keeps its model and its state to itself, so that nothing can go on "
            f"from here; do it again: `{command}`"
        )


def update_manifest(run: Path, **facts: object) -> None:
    """Add or replace entries of a run directory's manifest."""
    text = json.dumps({**read_manifest(run), **facts}, indent=2)
    write_atomically(run / MANIFEST, text.encode() + b"\n")


def now() -> str:
    """Return the local time with its zone, for a manifest."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str:
    """Return the commit of fedlab's checkout, with "-dirty" when files differ; empty outside a checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
