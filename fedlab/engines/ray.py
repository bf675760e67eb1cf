"""Flower's own runtime as an engine: a private SuperLink, one run on it, and the run's true outcome.

`submit` hands a SuperLink a bundle that names the installed apps and the run config; `follow` waits for the end and
raises `RunError` unless the run completed; `run` puts both together for Flower's simulation, whose clients are Ray
actors. Not `flwr run --stream`, which exits 0 although the run failed: we speak to the same Control API with the
client that the `flwr` command uses.

**Source**: Flower 1.39, `flwr/cli/run/run.py`, `flwr/simulation/app.py`, `flwr/supercore/control`.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import httpx
import tomli_w
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StreamLogsRequest
from flwr.proto.federation_config_pb2 import SimulationConfig
from flwr.proto.run_pb2 import RunStatus
from flwr.supercore import object_ref
from flwr.supercore.fab import Fab

from fedlab.config.schema import Flat, Ray
from fedlab.engines import Apps
from fedlab.engines.processes import MARKER_ENV, PROC, START_LIMIT, log_excerpt, marked_processes
from fedlab.engines.superlink import SuperLink, superlink
from fedlab.errors import ConfigError, RunError

SENTENCE = re.compile(r"^ *fedlab\.errors\.\w+: ", re.M)  # how a traceback of an error of ours ends


def run(
    apps: Apps,
    config: Flat,
    *,
    partitions: int,
    options: Ray,
    directory: Path,
    timeout: float | None = None,
    echo: Callable[[str], None] | None = None,
) -> None:
    """Run the apps in Flower's simulation with one simulated SuperNode per partition; return once it completed.

    `config` is the run config, flat, as both apps find it in `context.run_config`. `directory` receives `flower.log`
    and, if the run failed, Ray's logs. `timeout` is in seconds; `echo` gets what the apps print, while they run.
    """
    _check(apps, partitions, options)
    if options.address:
        federation = SimulationConfig(client_resources_num_cpus=int(options.cpus))
    else:
        # Flower takes whole CPUs per client and starts an actor wherever one fits, however few the partitions. Ours is
        # a private Ray and its CPUs are only numbers: one for each client that may run at the same time.
        slots = min(partitions, max(1, int(_cpus() / options.cpus)))
        federation = SimulationConfig(client_resources_num_cpus=1, init_args_num_cpus=slots)
    federation.num_supernodes = partitions
    federation.client_resources_num_gpus = options.gpus
    environment = {
        # "local" keeps Ray from joining whatever `ray start` left on this machine.
        "RAY_ADDRESS": options.address or "local",
        # Addresses of the loopback only; Ray has this switch for desktops, but it works everywhere.
        **({} if options.address else {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",  # those workers lack the actors' environment and would sit idle
    }
    with superlink(directory, simulation=True, environment=environment) as link:
        try:
            follow(link, submit(link, apps, config, federation), process="flwr-simulation", timeout=timeout, echo=echo)
        except RunError:
            logs = link.scratch / "ray" / "session_latest" / "logs"
            if logs.is_dir():
                shutil.copytree(logs, directory / "ray-logs", dirs_exist_ok=True)
            raise


def submit(link: SuperLink, apps: Apps, config: Flat, federation: SimulationConfig | None = None) -> int:
    """Start the run; return its id. The bundle is a pyproject.toml alone: the apps are installed, not shipped."""
    project = {
        "project": {"name": "fedlab-run", "version": "0.0.0"},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedlab",
                    "components": {"serverapp": apps.server, "clientapp": apps.client},
                    "config": dict(config),  # dotted keys are quoted, and Flower leaves them as they are
                }
            }
        },
    }
    bundle, _ = build_fab_from_files({"pyproject.toml": tomli_w.dumps(project).encode()})
    request = StartRunRequest(
        fab=fab_to_proto(Fab(sha256(bundle).hexdigest(), bundle, {})), override_federation_config=federation
    )
    try:
        reply = link.control.StartRun(request)
    except httpx.HTTPError as error:
        raise RunError(f"The SuperLink refused the run: {error}.\n{log_excerpt(link.log)}") from error
    if not reply.HasField("run_id"):
        raise RunError(f"The SuperLink did not start the run.\n{log_excerpt(link.log)}")
    return int(reply.run_id)


def follow(
    link: SuperLink, run_id: int, *, process: str, timeout: float | None, echo: Callable[[str], None] | None = None
) -> None:
    """Wait for the run to end; raise RunError unless it completed. `process` is the command that carries the run."""
    # The stream of the app's output ends with the run: nothing to poll, and the log is not full of our questions.
    stream = threading.Thread(target=_stream, args=(link, run_id, echo), daemon=True)
    stream.start()
    begin, seen, status = time.monotonic(), False, None
    while status is None:
        stream.join(0.5)
        waited = time.monotonic() - begin
        if link.process.poll() is not None:
            raise RunError(f"The SuperLink died during the run.\n{log_excerpt(link.log)}")
        if not stream.is_alive():
            status = _finished(link, run_id)
        elif timeout is not None and waited > timeout:
            raise RunError(f"The run did not end within {timeout:g} s and was stopped.\n{log_excerpt(link.log)}")
        elif not PROC.is_dir() or any(process in command for command in marked_processes(link.environment[MARKER_ENV]).values()):
            seen = True
        elif seen and (status := _finished(link, run_id, patience=3.0)) is None:
            raise RunError(f"{process} died before the end (killed? out of memory?).\n{log_excerpt(link.log)}")
        elif waited > START_LIMIT:
            raise RunError(f"{process} did not start within {START_LIMIT:g} s.\n{log_excerpt(link.log)}")
    if status.sub_status != SubStatus.COMPLETED:
        details = re.sub(r"^(Simulation|ServerApp) failed with exception: ", "", status.details) or "no reason given"
        proof = log_excerpt(link.log)
        if SENTENCE.search(proof):  # our own app has said what came and what to do
            raise RunError(details)
        raise RunError(f"The run ended as {status.sub_status}: {details}\n{proof}")


def _finished(link: SuperLink, run_id: int, patience: float = 1.0) -> RunStatus | None:
    """The status of a run that has ended, now or within `patience` seconds; None if it goes on."""
    end = time.monotonic() + patience
    while True:
        try:
            status: RunStatus = link.control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        except httpx.HTTPError as error:
            raise RunError(f"The SuperLink no longer answers: {error}.\n{log_excerpt(link.log)}") from error
        if status.status == Status.FINISHED:
            return status
        if time.monotonic() > end:
            return None
        time.sleep(0.5)


def _stream(link: SuperLink, run_id: int, echo: Callable[[str], None] | None) -> None:
    """Keep and pass on what the run prints, until its end or the SuperLink's, which `follow` notices itself."""
    with suppress(httpx.HTTPError, httpx.StreamError, ValueError), link.log.open("a") as log:
        for part in link.control.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
            log.write(part.log_output)
            log.flush()
            if echo is not None:
                echo(part.log_output)


def _check(apps: Apps, partitions: int, options: Ray) -> None:
    """Refuse at once what would fail slowly: Flower waits ten seconds on a client app that it cannot import."""
    if partitions < 1:
        raise ConfigError(f"The simulation needs at least 1 partition, got {partitions}.")
    if options.address and options.cpus != max(1, int(options.cpus)):
        raise ConfigError(f"On a shared Ray cluster Flower takes whole CPUs per client, got ray.cpus = {options.cpus}.")
    if find_spec("ray") is None:
        raise ConfigError("The ray engine needs the package ray: pip install 'flwr[simulation]'.")
    check_apps(apps)


def check_apps(apps: Apps) -> None:
    """Refuse an app that cannot be imported.

    Raises
    ------
    ConfigError
        With the reason.
    """
    for reference in (apps.server, apps.client):
        try:
            valid, reason = object_ref.validate(reference, check_module=True)
        except ImportError as error:  # the package above the module
            valid, reason = False, str(error)
        if not valid:
            raise ConfigError(f"No app at {reference!r}: {(reason or '').splitlines()[0]}")


def _cpus() -> int:
    """CPUs that this process may use, with the limit of a container if there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):
        return cpus
