"""One run of a Flower app, from its folder to a run directory with a report."""

from __future__ import annotations

import io
import logging
import shlex
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from flwr.app import Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import ServerApp

from fedlab.config.resolve import THREADS
from fedlab.config.sections import Value, to_toml
from fedlab.engines.client_host import RUN_ID, node_partitions
from fedlab.engines.flower_internals import task_identity
from fedlab.engines.flower_servers import clients_in_order, watched_servers
from fedlab.engines.inprocess import LocalGrid
from fedlab.engines.pool_worker import Setup
from fedlab.errors import ConfigError, FedlabError, RunError
from fedlab.files import no_follow
from fedlab.flower_apps.client import SeededClientApp, reproducible, worker_environment
from fedlab.flower_apps.engine import AppEngine
from fedlab.flower_apps.failures import describe, explain
from fedlab.flower_apps.grid import RecordedGrid
from fedlab.flower_apps.loading import importable, load
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.recorder import Recorder
from fedlab.launch import Watch, no_progress, sigterm_as_interrupt, write_page
from fedlab.references import load_reference
from fedlab.runs.directory import RunDirectory
from fedlab.runs.manifest import now
from fedlab.runs.numerics import numerics
from fedlab.runs.result import Result
from fedlab.seeds import Stream, exclusive, preserved
from fedlab.torch_state import usual_torch_state
from fedlab.training import resolve_device

LOG = "app.log"  # what an app prints and logs, in the run directory
WORKER_APP = "fedlab.flower_apps.client:app"
ROUNDS = "num-server-rounds"  # usual entry of a run config


@dataclass(frozen=True)
class FlowerRun:
    """A Flower app and how it is to be run.

    Attributes
    ----------
    project
        The app, with overrides.
    seed
        Run seed.
    threads
        CPU threads of each process; they fix the bits.
    engine
        Where clients answer; the bits are the same.
    """

    project: FlowerProject
    seed: int = 0
    threads: int = THREADS
    engine: AppEngine = field(default_factory=AppEngine)

    def create(self, parent: Path, name: str = "") -> RunDirectory:
        """Make the run directory, once the app's modules were imported.

        Parameters
        ----------
        name
            Name of the directory; empty: that of the app with the seed.

        Raises
        ------
        ConfigError
            When a package is missing, or the modules cannot be imported.
        RunError
            When no directory can be made in ``parent``.
        """
        self.check()
        project = self.project
        options: dict[str, Value] = {"name": project.name, "seed": self.seed, "app": str(project.path)}
        options |= {"clients": project.clients, "threads": self.threads}
        options |= {f"config.{key}": value for key, value in project.config.items()}
        return RunDirectory.make(
            parent,
            name or f"{project.name}-{self.seed}",
            to_toml(options),
            numerics=numerics(str(resolve_device("auto")), vectorized=False),
            workload=project.name,
            strategy="its own strategy",
            engine=self.engine.name,
            seed=self.seed,
            command=self.command(),
            options=options,
        )

    def check(self) -> None:
        """Import both apps, and refuse what is none; look at the engine.

        Raises
        ------
        ConfigError
            With a sentence.
        """
        self.engine.spec.validate(self.engine.parsed())
        with output_to(None), preserved(), importable(self.project):
            self._load()

    def command(self) -> str:
        """Return the command that repeats the run."""
        project, usual = self.project, FlowerProject.read(self.project.path)
        changed = {key: value for key, value in project.config.items() if value != usual.config.get(key)}
        words = ["fedlab", "flower", str(project.path)]
        words += [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in changed.items()]
        words += self.engine.written()
        words += ["--clients", str(project.clients)] if project.clients != usual.clients else []
        words += ["--threads", str(self.threads)] if self.threads != THREADS else []
        return shlex.join([*words, "--seed", str(self.seed)])

    def _load(self) -> tuple[ServerApp, Any]:
        project = self.project
        server, client = load(project, project.server), load(project, project.client)
        if not isinstance(server, ServerApp):
            raise ConfigError(
                f"{project.server} of {project.name} is a {type(server).__name__}; a ServerApp is expected"
            )
        if not callable(client):
            raise ConfigError(
                f"{project.client} of {project.name} is a {type(client).__name__}; a ClientApp is expected"
            )
        return server, client

    @usual_torch_state()
    def run(self, directory: RunDirectory, watch: Watch = no_progress) -> Result:
        """Run the app to its end in this process, and write the report.

        Raises
        ------
        FedlabError
            When the app failed, with what is missing, or where it raised what.
        """
        directory.update_manifest(started=now(), status="running", error=None, device=str(resolve_device("auto")))
        partitions = node_partitions(self.project.clients)
        rounds = self.project.config.get(ROUNDS, 0)
        recorder = Recorder(directory, partitions, rounds if type(rounds) is int else 0)
        with sigterm_as_interrupt(), directory, watch(directory.path), output_to(directory.path / LOG):
            try:
                self._carry_out(recorder, partitions)
                recorder.finish()
            except BaseException as error:
                failure = self._failure(error, directory)
                with suppress(RunError):  # what was measured until then
                    recorder.finish_round()
                directory.note_end(failure)
                if failure is error:
                    raise
                raise failure from error
        return write_page(Result.read(directory.path))

    def _carry_out(self, recorder: Recorder, partitions: dict[int, int]) -> None:
        """Run the ServerApp in this thread, on the server's random stream."""
        project, stream = self.project, Stream(self.seed, "server")
        with (
            exclusive(f"run {recorder.run.path.name}"),
            preserved(),
            importable(project),
            reproducible(self.threads),
            stream,
            task_identity(RUN_ID, SUPERLINK_NODE_ID),
        ):
            server, client = self._load()
            with self._grid(client, partitions, recorder.run.path) as inner:
                grid = RecordedGrid(inner, recorder, stream)
                context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), dict(project.config))
                try:
                    with watched_servers(recorder), clients_in_order():
                        server(grid, context)
                    grid.deliver_all()
                finally:
                    grid.close()

    def _grid(self, client: Any, partitions: dict[int, int], directory: Path) -> AbstractContextManager[LocalGrid]:
        """Open the grid that delivers messages: to this process, or to others."""
        spec, config = self.engine.spec, self.project.config
        app = SeededClientApp(self.project, client, self.seed) if spec.uses_objects else WORKER_APP
        own = worker_environment(self.project, self.seed, self.threads)
        setup = Setup(app, config, partitions, RUN_ID, SUPERLINK_NODE_ID, vectorize=0, environment=own)
        opened: AbstractContextManager[LocalGrid] = load_reference(spec.clients)(setup, self.engine.parsed(), directory)
        return opened

    def _failure(self, error: BaseException, directory: RunDirectory) -> BaseException:
        """Return the error to show: an app's own bug with its place, and the traceback in the app's log."""
        if isinstance(error, FedlabError | KeyboardInterrupt):
            return error
        with suppress(OSError), open(directory.path / LOG, "a", encoding="utf-8", opener=no_follow) as log:
            log.write("".join(traceback.format_exception(error)))
        known = explain(error, self.project) if isinstance(error, Exception) else ""
        if known:
            return RunError(known)
        return RunError(
            f"the ServerApp of {self.project.name} raised {describe(error, self.project)}; the whole traceback is in "
            f"{directory.path / LOG}"
        )


class _OneThreadsOutput(io.TextIOBase):
    """Standard output that keeps what one thread prints; what others print, such as the progress, passes."""

    def __init__(self, kept: TextIO | None, passed: TextIO) -> None:
        self.kept, self.passed, self.thread = kept, passed, threading.get_ident()

    def _target(self) -> TextIO | None:
        return self.kept if threading.get_ident() == self.thread else self.passed

    def write(self, text: str) -> int:
        target = self._target()
        return target.write(text) if target else len(text)

    def flush(self) -> None:
        if target := self._target():
            target.flush()

    def isatty(self) -> bool:
        return self.passed.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.passed.encoding


@contextmanager
def output_to(path: Path | None) -> Iterator[None]:
    """Append what this thread prints, and what Flower logs, to a file; None: drop it."""
    flower = logging.getLogger("flwr")
    with open(path, "a", 1, "utf-8", opener=no_follow) if path else nullcontext() as log:
        handlers, flower.handlers = flower.handlers, [logging.StreamHandler(log) if log else logging.NullHandler()]
        try:
            with redirect_stdout(_OneThreadsOutput(log, sys.stdout)):
                yield
        finally:
            flower.handlers = handlers
