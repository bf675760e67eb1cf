"""Flower's simulation behind a private SuperLink: true outcomes, config on both sides, and nothing left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fedlab.config.engine_options import RayConfig
from fedlab.engines import processes, ray
from fedlab.engines.spec import Apps
from fedlab.errors import ConfigError, RunError
from waiting import wait_until

SERVER = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    config = dict(context.run_config)
    print("the server is awake", flush=True)
    time.sleep(config["sleep"])
    while len(nodes := list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.1)
    replies = list(grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes]))
    errors = [m.error.reason for m in replies if m.has_error()]
    if errors and not config["tolerant"]:
        raise ValueError("a client failed and the server minds")
    seen = [json.loads(m.content["c"]["json"]) for m in replies if not m.has_error()]
    Path(config["out"]).write_text(json.dumps({"server": config, "clients": seen, "errors": errors}))
"""
CLIENT = """
import json
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    node, config = dict(context.node_config), dict(context.run_config)
    if node["partition-id"] == config["client.fails"]:
        raise ValueError("the client went wrong")
    seen = json.dumps({"node": node, "config": config})
    return Message(RecordDict({"c": ConfigRecord({"json": seen})}), reply_to=message)
"""


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apps:
    """Two apps in a package that only our own sys.path knows."""
    package = tmp_path / "path" / "toyfederation"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "server.py").write_text(SERVER)
    (package / "client.py").write_text(CLIENT)
    monkeypatch.syspath_prepend(str(package.parent))
    return Apps("toyfederation.server:app", "toyfederation.client:app")


PRIVATE = RayConfig(address="", cpus=1.0, gpus=0.0)


def left() -> dict[int, str]:
    """Processes that carry the mark of any run of these tests: process id -> command line."""
    worker = f"PYTEST_XDIST_WORKER={os.environ.get('PYTEST_XDIST_WORKER', '')}".encode()  # another may test the same
    marked = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (entry / "environ").read_bytes()
            if f"{processes.MARKER_ENV}=fedlab-".encode() in environment and (
                worker[-1:] == b"=" or worker in environment
            ):
                marked[int(entry.name)] = (entry / "cmdline").read_text()
    return marked


def configuration(out: Path, **changes: bool | int | float | str) -> dict[str, bool | int | float | str]:
    """Every type that a run config takes, a dotted key beside its own prefix, and text that needs quoting."""
    config: dict[str, bool | int | float | str] = {"out": str(out), "nodes": 2, "sleep": 0.0, "tolerant": True}
    config |= {"client.fails": -1, "client": 2.5, "a text": 'q"u\no\\te é'}
    return config | changes


def test_refuses_at_once_what_cannot_run(apps: Apps, tmp_path: Path) -> None:
    def run(apps: Apps, partitions: int = 1, options: RayConfig | None = None) -> None:
        ray.run(apps, {}, partitions=partitions, options=options or PRIVATE, directory=tmp_path / "run")

    with pytest.raises(ConfigError, match=r"No app at 'toyfederation.nothing:app'"):
        run(Apps("toyfederation.nothing:app", apps.client))
    with pytest.raises(ConfigError, match=r"No app at 'nothing.at.all:app'"):
        run(Apps(apps.server, "nothing.at.all:app"))
    with pytest.raises(ConfigError, match=r"at least 1 partition, got 0"):
        run(apps, partitions=0)
    with pytest.raises(ConfigError, match=r"whole CPUs per client, got ray.cpus = 0.5"):
        run(apps, options=RayConfig(address="127.0.0.1:1", cpus=0.5, gpus=0.0))
    assert not (tmp_path / "run").exists()


@pytest.mark.engine
def test_config_reaches_both_sides_of_every_node(apps: Apps, tmp_path: Path) -> None:
    out, printed = tmp_path / "out.json", list[str]()
    config = configuration(out, **{"client.fails": 1, "nodes": 3})
    ray.run(apps, config, partitions=3, options=PRIVATE, directory=tmp_path / "run", timeout=100, echo=printed.append)
    seen = json.loads(out.read_text())
    assert seen["server"] == config
    assert sorted(client["node"]["partition-id"] for client in seen["clients"]) == [0, 2]
    assert all(client["config"] == config and client["node"]["num-partitions"] == 3 for client in seen["clients"])
    assert "the client went wrong" in seen["errors"][0]  # and the run completed, because the server went on
    assert "the server is awake" in "".join(printed)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["flower.log"]
    assert left() == {}


@pytest.mark.engine
def test_a_failed_run_says_why(apps: Apps, tmp_path: Path) -> None:
    config = configuration(tmp_path / "out.json", **{"client.fails": 1, "tolerant": False})
    with pytest.raises(RunError) as caught:
        ray.run(apps, config, partitions=2, options=PRIVATE, directory=tmp_path / "run", timeout=100)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The run ended as failed: a client failed and the server minds"
    assert "  ValueError: the client went wrong" in lines
    assert lines[-1] == f"Full log: {tmp_path / 'run' / 'flower.log'}"
    assert (tmp_path / "run" / "ray-logs" / "raylet.out").is_file()
    assert left() == {}


@pytest.mark.engine
def test_a_run_whose_process_is_killed_has_failed(apps: Apps, tmp_path: Path) -> None:
    def kill(printed: str) -> None:
        if "awake" in printed:
            for pid in [pid for pid, command in left().items() if "\0flwr-simulation\0" in command]:
                os.kill(pid, signal.SIGKILL)

    config = configuration(tmp_path / "out.json", sleep=60.0)
    with pytest.raises(RunError, match=r"^flwr-simulation died before the end"):
        ray.run(apps, config, partitions=2, options=PRIVATE, directory=tmp_path / "run", timeout=60, echo=kill)
    assert left() == {}


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_us(number: signal.Signals, apps: Apps, tmp_path: Path) -> None:
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has it ignored
from pathlib import Path
from fedlab.config.engine_options import RayConfig
from fedlab.engines import ray
from fedlab.engines.spec import Apps
sys.path[:0] = {sys.path!r}
ray.run(
    {apps!r}, {configuration(tmp_path / "out.json", sleep=60.0)!r}, partitions=2, options={PRIVATE!r},
    directory=Path({str(tmp_path / "run")!r}), echo=lambda text: print(text, flush=True),
)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as us:
        assert us.stdout is not None
        assert us.stderr is not None
        while "awake" not in us.stdout.readline():
            assert us.poll() is None, us.stderr.read()
        time.sleep(1.5)  # Ray is starting meanwhile
        assert any("flwr-simulation" in command for command in left().values())
        us.send_signal(number)
        error = us.stderr.read()
        code = us.wait(20)
    assert code == -number
    assert ("KeyboardInterrupt" in error) == (number == signal.SIGINT)
    limit = 0 if number == signal.SIGINT else 15  # killed, we leave it to the SuperLink's process
    wait_until(lambda: left() == {}, "the end of all processes", limit)
