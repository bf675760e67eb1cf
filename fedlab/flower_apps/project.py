"""A Flower app on disk: what ``pyproject.toml`` says under ``[tool.flwr.app]``.

**Source**: the format is that of ``flwr run`` (flwr 1.39, ``flwr/common/config.py``); the number of clients is that of
``[tool.flwr.federations]``, which releases before 1.26 read.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedlab.config.presets import flatten
from fedlab.config.sections import Overrides, Value
from fedlab.errors import ConfigError, suggest

FILE = "pyproject.toml"
CLIENTS = 10  # of Flower's own simulation, where nothing else is said
NUM_CLIENTS = "federation.num-supernodes"  # an override that is no entry of the run config
SOURCES = (".py", ".toml")  # ends of names
NOT_OF_AN_APP = {"pyvenv.cfg", "manifest.json", "comparison.json"}  # files by which other folders are known
BOOLS = {"true": True, "false": False}


@dataclass(frozen=True)
class FlowerProject:
    """A folder with a Flower app.

    Attributes
    ----------
    path
        The folder, from which modules are imported.
    name
        Name of the project.
    server, client
        References ``module:attribute`` of the ServerApp and the ClientApp.
    config
        Flower's run config by dotted key.
    dependencies
        What the project asks for, as written; versions in it are ignored.
    clients
        Number of clients.
    """

    path: Path
    name: str
    server: str
    client: str
    config: Mapping[str, Value]
    dependencies: tuple[str, ...]
    clients: int

    @classmethod
    def read(cls, folder: Path | str) -> FlowerProject:
        """Read the app of a folder.

        Raises
        ------
        ConfigError
            When there is no such folder, or it has no Flower app.
        """
        path = Path(folder).expanduser().resolve()
        file = path / FILE
        if not path.is_dir():
            raise ConfigError(f"{folder} is no folder; name the folder of a Flower app, which has a {FILE}")
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path} holds no Flower app: it has no {FILE}; `flwr new` makes one") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not valid TOML: {error}") from None
        app = _table(table, "tool", "flwr", "app")
        components = _table(app, "components")
        for kind in ("serverapp", "clientapp"):
            if not (isinstance(components.get(kind), str) and all(components[kind].partition(":"))):
                raise ConfigError(
                    f"{path} holds no Flower app: {file} names no {kind}; under [tool.flwr.app.components] write "
                    f'{kind} = "module:app"'
                )
        project = _table(table, "project")
        return cls(
            path,
            str(project.get("name") or path.name),
            components["serverapp"],
            components["clientapp"],
            flatten(_table(app, "config"), f"[tool.flwr.app.config] of {file}"),
            tuple(str(item) for item in project.get("dependencies", ())),
            _supernodes(_table(table, "tool", "flwr", "federations")),
        )

    def with_overrides(self, overrides: Overrides, clients: int | None = None) -> FlowerProject:
        """Return the app with some entries of its run config replaced, each by a value of the type that it had.

        Parameters
        ----------
        overrides
            Values by key, as text or already of their type; ``federation.num-supernodes`` is the number of clients.
        clients
            Number of clients; None: as the project or the overrides say.

        Raises
        ------
        ConfigError
            When the run config has no such entry, a value is of another type, or there would be no client.
        """
        given = dict(overrides)
        number = _parse(NUM_CLIENTS, given.pop(NUM_CLIENTS, self.clients), self.clients) if clients is None else clients
        if not isinstance(number, int) or number < 1:
            raise ConfigError(f"{number} clients cannot learn anything; ask for at least 1 (--clients)")
        for key in given:
            if key not in self.config:
                known = suggest(key, [*self.config, NUM_CLIENTS])
                raise ConfigError(f"the run config of {self.name} has no {key!r}; {known} It is in {self.path / FILE}")
        changed = {key: _parse(key, value, self.config[key]) for key, value in given.items()}
        return replace(self, config={**self.config, **changed}, clients=number)

    def content_hash(self) -> str:
        """Return the SHA-256 of the names and contents of the app's source files; see :func:`sources`."""
        digest = hashlib.sha256()
        for file in sources(self.path):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(self.path).as_posix()} {len(content)}\n".encode() + content)
        return digest.hexdigest()

    def requirement(self, package: str) -> str:
        """Return the dependency that is named like an imported package, as the project writes it; "" without one."""
        wanted = _normal(package)
        names = {item: _normal(without_version(item).partition("[")[0]) for item in self.dependencies}
        exact = [item for item, name in names.items() if name == wanted]
        return (exact or [item for item, name in names.items() if wanted in name.split("-")] or [""])[0]


def sources(folder: Path) -> list[Path]:
    """Return the source files below a folder, in order: Python and TOML, of which Flower makes a bundle.

    Hidden folders, virtual environments and results of fedlab, such as run directories, are no part of an app.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        if place != str(folder) and NOT_OF_AN_APP.intersection(files):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        found += [Path(place) / name for name in files if name.endswith(SOURCES) and (Path(place) / name).is_file()]
    return sorted(found)


def _table(table: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return a table within tables; an empty one where there is none."""
    for key in keys:
        found = table.get(key, {})
        table = found if isinstance(found, Mapping) else {}
    return table


def _supernodes(federations: Mapping[str, Any]) -> int:
    """Return the number of clients of the default federation."""
    options = _table(federations, str(federations.get("default", "local-simulation")), "options")
    number = options.get("num-supernodes", CLIENTS)
    return number if isinstance(number, int) and number > 0 else CLIENTS


def _parse(key: str, value: Value, default: Value) -> Value:
    """Return a value in the type of the default that it replaces."""
    kind, text = type(default), str(value).strip()
    unquoted = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        if kind is bool:
            return BOOLS[text.lower()]
        return kind(text.replace("_", "") if kind is int else text) if kind in (int, float) else unquoted
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{key}: got {value!r}; {expected} is expected, as in {key}={default}") from None


def without_version(requirement: str) -> str:
    """Return a requirement without its version and marker: ``torch[x]`` of ``torch[x]>=2.8; python_version > "3"``."""
    for mark in "<>=!~; @(":
        requirement = requirement.partition(mark)[0]
    return requirement


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
