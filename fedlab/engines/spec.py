"""The description of an engine: what carries the messages between one ServerApp and its ClientApps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.config.schema import Config, NoOptions
from fedlab.errors import ConfigError
from fedlab.references import load_reference

Run = Callable[["Apps", Config, Path], None]  # the apps, the configuration, the run directory


@dataclass(frozen=True)
class Apps:
    """Flower's two apps as import references, ``module:attribute``."""

    server: str
    client: str

    def load(self) -> tuple[Any, Any]:
        """Import both apps. Flower's own loader would put the current folder first on the search path."""
        return load_reference(self.server), load_reference(self.client)


@dataclass(frozen=True)
class EngineSpec:
    """Description of an engine for the registry.

    Attributes
    ----------
    run
        Runs a federation to its end, or raises; as an import path, so that only a run imports it.
    options
        Dataclass of its options.
    check
        Import path of a function of the engine's options that raises what would stop a run before it begins; empty:
        none.
    clients
        Import path of a context manager of a :class:`fedlab.engines.pool_worker.Setup`, the options and the run
        directory, which yields a grid whose clients are those of any app; empty: it carries fedlab's own apps only.
    clients_see_gpu
        Returns True, given the options, if clients reach the server's GPU.
    reserves
        Returns, given the options, the CPUs and the GPUs that each client reserves on a cluster that others use, too.
    simulates_clients
        True if clients run on this machine, on data that it can read.
    uses_objects
        True if clients can use objects that only this process has, such as those of a notebook.
    vectorizes
        True if its processes can train several clients at once (option ``vectorize``).
    name
        Prefix of its options where it is named by import path; empty: the module's name.
    """

    run: Run | str
    options: type = NoOptions
    check: Callable[[Any], None] | str = ""
    clients: str = ""
    clients_see_gpu: Callable[[Any], bool] = lambda options: True
    reserves: Callable[[Any], tuple[float, float]] = lambda options: (0.0, 0.0)
    simulates_clients: bool = True
    uses_objects: bool = False
    vectorizes: bool = False
    name: str = ""

    def start(self, apps: Apps, config: Config, directory: Path) -> None:
        """Run a federation to its end."""
        load_reference(self.run)(apps, config, directory)

    def validate(self, options: Any) -> None:
        """Raise what would stop a run with these options before it begins."""
        if self.check:
            load_reference(self.check)(options)


def flower_config(config: Config) -> dict[str, str]:
    """Return Flower's run config: two keys, which both apps resolve into the same configuration."""
    return {"preset": "", "overrides": config.to_toml()}


def spec_of(found: object, what: str) -> EngineSpec:
    """Return the spec that the registry found, or refuse what is none.

    Raises
    ------
    ConfigError
        When it is no EngineSpec.
    """
    if not isinstance(found, EngineSpec):
        raise ConfigError(f"{what} is a {type(found).__name__}; an EngineSpec is expected")
    return found
