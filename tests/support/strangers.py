"""A user's own files of common names, which must harm nothing: each ends whatever imports it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

OURS = ("server", "client", "strategies/__init__", "strategies/base", "workload", "registry", "training")
LIBRARIES = ("numpy", "torch", "flwr", "ray", "grpc", "typer", "google")
PYTHONS = ("random", "statistics", "queue", "secrets", "profile", "signal", "types", "typing", "logging", "winreg")


def put_files(folder: Path, names: Iterable[str]) -> Path:
    """Put a user's own files into a folder, which say so when they are imported."""
    (folder / "strategies").mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('the user\\'s own {name} was imported')\n")
    return folder


def put_all(folder: Path) -> Path:
    """Put files with the names of ours, of what we import, and of Python's own modules into a folder."""
    return put_files(folder, (*OURS, *LIBRARIES, *PYTHONS))
