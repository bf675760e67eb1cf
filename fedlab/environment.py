"""Variables and versions that processes on other machines share with the process that starts them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from fedlab.plugins import PLUGIN_PATH, plugin_folders, python_path

DISTRIBUTION = "fedlab-adapt"
OWN = "FEDLAB_"  # beginning of the names of fedlab's own settings
DATA = "FEDLAB_DATA"
PATHS = (DATA, PLUGIN_PATH)


def versions_here() -> str:
    """Return the versions of fedlab and Python that must be the same on all machines."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "not installed"
    return f"fedlab {version} on Python {'.'.join(platform.python_version_tuple()[:2])}"


def search_paths() -> dict[str, str]:
    """Return where modules and data are found, with absolute folders: a process must know it as it starts."""
    data = {DATA: str(Path(os.environ[DATA]).resolve())} if os.environ.get(DATA) else {}
    return {**data, "PYTHONPATH": python_path(), PLUGIN_PATH: os.pathsep.join(plugin_folders())}


def settings(*prefixes: str) -> dict[str, str]:
    """Return the settings of fedlab that are no search paths.

    Values may be secrets: no command line and no file that others can read may hold them.

    Parameters
    ----------
    prefixes
        Beginnings of the names of other variables that are wanted.
    """
    wanted = (OWN, *prefixes)
    return {name: value for name, value in os.environ.items() if name.startswith(wanted) and name not in PATHS}


@contextmanager
def with_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Run the body with these variables in the environment of this process."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
