"""A cell that runs a preset with some options."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from fedlab import launch
from fedlab.comparison import cells
from fedlab.config.schema import Config
from fedlab.registry import config_from_text


@dataclass(frozen=True, eq=False)
class PresetWork:
    """The run of a checked configuration."""

    config: Config
    kind: ClassVar[str] = "preset"

    @property
    def threads(self) -> int:
        """CPU threads of each of its processes."""
        return self.config.run.threads

    @property
    def device(self) -> str:
        """Device as an option."""
        return self.config.run.device

    @property
    def reserved(self) -> tuple[float, float]:
        """CPUs and GPUs that each of its clients reserves on a cluster by itself."""
        found: tuple[float, float] = self.config.plugins["engine"].spec.reserves(self.config.engine)
        return found

    @property
    def pretraining(self) -> Hashable:
        """Workload, seed and steps of pre-training: runs that differ in one of them cannot share it."""
        run, steps = self.config.run, self.config.server.pretrain_steps
        return (run.workload, run.seed, steps) if steps else None

    def to_text(self) -> str:
        """Return the configuration as TOML."""
        return self.config.to_toml()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the run of a configuration in TOML.

        Raises
        ------
        ConfigError
            When it names something that this process cannot find.
        """
        return cls(config_from_text("", text))

    def __call__(self, path: Path) -> object:
        """Run it, go on with it, or read what has finished; the device is one that this machine has."""
        return cells.run_or_resume(path, lambda: launch.with_device_of_this_machine(self.config))
