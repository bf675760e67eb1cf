"""Objects of this package by import path, so that nothing is imported before it is used."""

from __future__ import annotations

import importlib
from typing import Any


def load_reference(found: Any) -> Any:
    """Return what an import path ``module:attribute`` names; anything else is returned as it is."""
    if not isinstance(found, str):
        return found
    module, _, name = found.partition(":")
    return getattr(importlib.import_module(module), name)
