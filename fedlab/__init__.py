"""fedlab: federations whose server owns labeled source data and whose clients own unlabeled target domains."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

# OpenMP's threads spin while they wait for each other; where other processes want the CPUs, that costs time slices.
# Spinning briefly is as fast on an idle machine and faster on a busy one (`python -m benchmarks.threads`). It is read
# when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent until a program or `--verbose` asks for it

if TYPE_CHECKING:
    from fedlab.api import Comparison, Config, Prediction, Result, compare, predict, resume, run, serve
    from fedlab.workloads.arrays import classification

    __version__: str

__all__ = ["Comparison", "Config", "Prediction", "Result"]
__all__ += ["classification", "compare", "predict", "resume", "run", "serve"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that ``import fedlab`` costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("fedlab-adapt")
    if name in __all__:
        from importlib import import_module

        place = "fedlab.workloads.arrays" if name == "classification" else "fedlab.api"
        return getattr(import_module(place), name)
    raise AttributeError(f"module 'fedlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
