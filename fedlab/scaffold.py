"""Packages of a user's own, written from templates: a module, its contract test and its packaging."""

from __future__ import annotations

import keyword
import re
from importlib.util import find_spec
from pathlib import Path

from fedlab.config.schema import COMMON_SECTIONS
from fedlab.errors import ConfigError
from fedlab.registry import KINDS, ablation_names, names

TEMPLATES = Path(__file__).parent / "templates"
FILES = {"pyproject.toml": "pyproject.toml", "module.py": "{name}.py", "test_module.py": "test_{name}.py"}


def write_package(kind: str, name: str, parent: Path) -> list[Path]:
    """Write a package of three files that runs as it stands.

    Parameters
    ----------
    kind
        "workload" or "strategy".
    name
        Of the module, the package and the plug-in: a Python identifier in lower case.
    parent
        Where the folder ``name`` is made.

    Returns
    -------
    list
        Paths of the files.

    Raises
    ------
    ConfigError
        When the name cannot be used, or the folder exists.
    """
    class_name = "".join(part.capitalize() for part in name.split("_"))
    templates = {file: (TEMPLATES / kind / f"{file}.template").read_text(encoding="utf-8") for file in FILES}
    _check_name(kind, name)
    if re.search(rf"\b{class_name}\b", templates["module.py"]):
        raise ConfigError(f"the module uses a class {class_name} already, as that of {name!r}; choose another name")
    folder = parent / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder} exists already; choose another name, or another folder with --folder") from None
    except OSError as error:
        raise ConfigError(f"no folder can be made in {parent}: {error}; choose another with --folder") from None
    written = []
    for template, text in templates.items():
        path = folder / FILES[template].format(name=name)
        path.write_text(re.sub(r"\bCLASS\b", class_name, re.sub(r"NAME", name, text)), encoding="utf-8")
        written.append(path)
    return written


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} is no name for a module; write letters, digits and _ in lower case, as my_task")
    if name in COMMON_SECTIONS:
        raise ConfigError(f"{name!r} is a section of options that every run has; choose another name")
    if name in ablation_names():
        raise ConfigError(f"{name!r} is the name of an ablation of fedlab already; choose another")
    taken = next((other for other in KINDS if name in names(other)), "")
    if taken:
        raise ConfigError(f"{name!r} is the name of a {taken} of fedlab already; choose another")
    if find_spec(name) is not None:
        raise ConfigError(f"a module {name!r} is installed already, which yours would hide; choose another name")
