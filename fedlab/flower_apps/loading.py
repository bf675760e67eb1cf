"""Import of an app's two objects from its folder, fresh for each run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fedlab.errors import ConfigError
from fedlab.flower_apps.failures import describe, explain
from fedlab.flower_apps.project import FlowerProject


@contextmanager
def importable(project: FlowerProject) -> Iterator[None]:
    """Let the modules of an app's folder be imported while the body runs, and forget them afterwards.

    What a module keeps between calls, such as a data set that was read, is then of one run. The folder stands before
    all others on the search path, as it does under ``flwr run``.
    """
    folder, before = str(project.path), set(sys.modules)
    hidden = _hide(
        {reference.partition(":")[0].partition(".")[0] for reference in (project.server, project.client)}, folder
    )
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in [name for name, module in sys.modules.items() if name not in before and _is_in(module, folder)]:
            del sys.modules[name]
        sys.modules.update(hidden)


def load(project: FlowerProject, reference: str) -> Any:
    """Return the object at ``module:attribute`` of an app.

    Raises
    ------
    ConfigError
        When a package is missing, the module raises as it is imported, or it has no such object.
    """
    module_name, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        reason = explain(error, project) or f"{reference} of {project.name} cannot be used: {describe(error, project)}"
        raise ConfigError(reason) from error
    return found


def _hide(names: set[str], folder: str) -> dict[str, Any]:
    """Remove modules of other places, whose names the app's packages have, from Python's table, and return them."""
    own = {name for name in names if (Path(folder) / name).is_dir() or (Path(folder) / f"{name}.py").is_file()}
    foreign = {name for name in own if name in sys.modules and not _is_in(sys.modules[name], folder)}
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in foreign}


def _is_in(module: Any, folder: str) -> bool:
    """Return True for a module whose file, or folder of a package without one, is below ``folder``."""
    known = vars(module) if isinstance(module, ModuleType) else {}
    path = known.get("__path__")
    places = [known.get("__file__"), *(path if path is not None and "__file__" not in known else ())]
    return any(Path(folder) in Path(place).parents for place in places if isinstance(place, str))
