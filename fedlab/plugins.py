"""Things of a user's own: modules found by import path or entry point, and objects of this process."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
from dataclasses import is_dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from fedlab.config.data_options import DATA_CONFIG, DEFAULT_DATA
from fedlab.config.sections import Value, option_values, section_fields
from fedlab.errors import ConfigError, suggest

LIVE, NUMBER = "live:", "#"  # around the name of an object that only this process has: live:my_task#2
SCRIPTS = ("__main__", "__mp_main__")  # modules that other processes cannot import by this name
RESULT_FILES = ("config.toml", "model.pt")  # by which the directory of a run or of a client is known
PLUGIN_PATH = "FEDLAB_PLUGIN_PATH"  # environment variable: folders of modules that are not installed

live_objects: dict[str, Any] = {}


def entry_points(group: str) -> dict[str, list[metadata.EntryPoint]]:
    """Return the entry points of a group by name; two packages may use one name."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in _group(group, tuple((path, _changed(path)) for path in sys.path)):
        if point.value not in [known.value for known in found.get(point.name, [])]:
            found.setdefault(point.name, []).append(point)
    return found


@lru_cache(maxsize=64)
def _group(group: str, places: tuple[tuple[str, int], ...]) -> metadata.EntryPoints:
    """Return the entry points of a group, read anew when the search path or a folder of it has changed."""
    return metadata.entry_points(group=group)


def _changed(path: str) -> int:
    """Return when a folder has changed last, in nanoseconds; 0 for what is not there."""
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0


def add_plugin_folder(folder: Path) -> None:
    """Let modules in a folder be found, in this process and those that it starts, behind all that is installed."""
    known = [path for path in os.environ.get(PLUGIN_PATH, "").split(os.pathsep) if path]
    if str(folder) not in known:
        os.environ[PLUGIN_PATH] = os.pathsep.join([*known, str(folder)])


def plugin_folders() -> list[str]:
    """Return the folders of modules that are not installed: the current one and those of ``FEDLAB_PLUGIN_PATH``.

    What somebody else's run or client left is data: within its directory, no module is looked for.
    """
    here = os.getcwd()
    own = "" if any((Path(here) / name).is_file() for name in RESULT_FILES) else here
    folders = (own, *os.environ.get(PLUGIN_PATH, "").split(os.pathsep))
    return [os.path.abspath(folder) for folder in folders if folder]


def python_path() -> str:
    """Return the search path of this process as the variable PYTHONPATH of another one: the same modules are found.

    Another process may begin in another folder. So relative entries are made absolute, and so is the empty one, which a
    notebook and ``python -c`` have: it is the current folder of this process at this moment.
    """
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)


def _extend_path() -> None:
    """Put the folders of plug-ins at the end of the search path."""
    sys.path += [folder for folder in plugin_folders() if folder not in sys.path]


def load_object(path: str, what: str) -> Any:
    """Import ``pkg.module:Name``; ``what`` says in messages what it is for.

    Raises
    ------
    ConfigError
        When the module is not installed here, raises as it is imported, or has no such name.
    """
    if path.startswith(LIVE):
        if path not in live_objects:
            raise ConfigError(
                f"{what} is an object of the process that began the run, and this one has none of that name. Give the "
                "object again, in Python: fedlab.resume(RUN, workload=OBJECT), or strategy=OBJECT. What every process "
                "can find is defined in a module, and named by its import path, pkg.module:Name"
            )
        return live_objects[path]
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{what} is no import path; write pkg.module:Name")
    module = load_module(module_name, what)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(module) if not name.startswith("_")]
            raise ConfigError(f"{what}: module {module_name!r} has no {attribute!r}; {suggest(attribute, public)}")
        found = getattr(found, part)
    return found


def give_object(reference: str, found: object) -> None:
    """Let a name that another process gave to an object of its own stand for an object of this process.

    Raises
    ------
    ConfigError
        When it is no such name: then modules have what is meant.
    """
    if not reference.startswith(LIVE):
        raise ConfigError(f"the run names {reference!r}, which is found without an object; leave the object out")
    live_objects[reference] = found


def exists_here_only(reference: str) -> bool:
    """Return True if another process cannot find what a reference names."""
    return reference.startswith((LIVE, "__main__:"))


def load_module(name: str, what: str) -> Any:
    """Import a module; ``what`` says in messages what it is for.

    Raises
    ------
    ConfigError
        When it is not installed here, or raises as it is imported.
    """
    if not _is_installed(name.partition(".")[0]):
        _extend_path()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"{what}: there is no module {missing!r} on this machine; install the package that it belongs to "
                f"here too (pip install), or set {PLUGIN_PATH} to the folder that it is in"
            ) from None
        raise ConfigError(f"{what}: module {name!r} needs {missing!r}, which is not installed here") from None
    except (Exception, SystemExit) as error:
        lacks_library = "cannot open shared object file" in str(error)
        hint = "; `fedlab doctor` names what the system lacks, and how to install it" if lacks_library else ""
        raise ConfigError(f"{what}: importing {name!r} raised {type(error).__name__}: {error}{hint}") from error


def _is_installed(package: str) -> bool:
    """Return True where a package is found without the current folder, whose files then shadow no optional import."""
    return package in sys.modules or find_spec(package) is not None


def section_name(reference: str) -> str:
    """The prefix of options of something named by import path: its own name in snake case, or its module's for SPEC."""
    module, _, name = reference.partition(NUMBER)[0].rpartition(":")
    if name.isupper():
        return module.rpartition(".")[2]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2]).lower()


def reference_to(kind: str, found: object) -> tuple[str, dict[str, Value]]:
    """Return how a run can name an object, and the options that make it again: for ``fedlab.run(workload=MyTask())``.

    A dataclass with plain fields is named by the import path of its class, anything that is a variable of a module by
    that; what is left is known to this process alone.
    """
    cls = type(found)
    if is_dataclass(found) and _is_at(cls.__module__, cls.__qualname__, cls):
        reference = f"{cls.__module__}:{cls.__qualname__}"
        values = {name: getattr(found, name) for name in section_fields(cast(type[Any], cls))}
        if kind == "workload" and all(isinstance(value, bool | int | float | str) for value in values.values()):
            section = str(getattr(found, "name", "")) or section_name(reference)
            return reference, {**_data_options(found), **{f"{section}.{name}": value for name, value in values.items()}}
    for module_name, module in sorted(sys.modules.items(), key=lambda item: item[0] in SCRIPTS):
        for name, value in list(vars(module).items()) if module is not None and hasattr(module, "__dict__") else ():
            if value is found and _is_at(module_name, name, found):
                return f"{module_name}:{name}", {}
    name = LIVE + section_name(f":{getattr(found, '__name__', cls.__name__)}")
    references = (name if number == 1 else f"{name}{NUMBER}{number}" for number in itertools.count(1))
    reference = next(reference for reference in references if live_objects.get(reference, found) is found)
    live_objects[reference] = found
    return reference, {}


def _data_options(workload: object) -> dict[str, Value]:
    """Options of the data section in which a workload's own differs from the default."""
    data, usual = getattr(workload, DATA_CONFIG, DEFAULT_DATA), option_values(DEFAULT_DATA)
    return {f"data.{name}": value for name, value in option_values(data).items() if value != usual[name]}


def _is_at(module: str, path: str, found: object) -> bool:
    place: Any = sys.modules.get(module)
    for part in path.split("."):
        place = getattr(place, part, None)
    return place is found
