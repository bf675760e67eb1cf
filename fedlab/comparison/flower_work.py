"""A cell that runs somebody's Flower app."""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

from fedlab.comparison import cells
from fedlab.flower_apps.engine import AppEngine
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.run import FlowerRun


@dataclass(frozen=True, eq=False)
class FlowerWork:
    """The run of an app; its state is its own, so one that was stopped begins anew."""

    run: FlowerRun
    kind: ClassVar[str] = "flower app"

    @property
    def threads(self) -> int:
        """CPU threads of each of its processes."""
        return self.run.threads

    @property
    def device(self) -> str:
        """Return ``auto``: an app takes the device that it likes."""
        return "auto"

    @property
    def reserved(self) -> tuple[float, float]:
        """CPUs and GPUs that each of its clients reserves on a cluster by itself."""
        return self.run.engine.spec.reserves(self.run.engine.parsed())

    @property
    def pretraining(self) -> Hashable:
        """Return None: nothing is shared between runs of an app."""
        return None

    def to_text(self) -> str:
        """Return app, run config and seed as JSON."""
        project = {**asdict(self.run.project), "path": str(self.run.project.path)}
        return json.dumps({**asdict(self.run), "project": project})

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the run of such a text; its app is imported when it begins."""
        found = json.loads(text)
        project, engine = found.pop("project"), AppEngine(**found.pop("engine"))
        kept = {"path": Path(project["path"]), "dependencies": tuple(project["dependencies"])}
        return cls(FlowerRun(FlowerProject(**{**project, **kept}), engine=engine, **found))

    def __call__(self, path: Path) -> object:
        """Run it, unless a finished run is there."""
        if cells.finished(path):
            return None
        shutil.rmtree(path, ignore_errors=True)
        return self.run.run(self.run.create(path.parent, path.name))
