"""Variables of the environment that processes on other machines get from the process that starts them."""

from __future__ import annotations

import os
from pathlib import Path

from fedlab.plugins import PLUGIN_PATH, plugin_folders, python_path

OWN = "FEDLAB_"  # beginning of the names of fedlab's own settings
DATA = "FEDLAB_DATA"


def remote_environment(*prefixes: str) -> dict[str, str]:
    """Return where modules and data are found, and the settings of fedlab, with absolute folders.

    Values may be secrets: no command line and no file that others can read should hold them.

    Parameters
    ----------
    prefixes
        Beginnings of the names of other variables that are wanted.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith((OWN, *prefixes))}
    data = {DATA: str(Path(given[DATA]).resolve())} if given.get(DATA) else {}
    return {**given, **data, "PYTHONPATH": python_path(), PLUGIN_PATH: os.pathsep.join(plugin_folders())}
