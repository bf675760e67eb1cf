"""A Ray cluster of two nodes on this machine: what is said about one, and what runs on it."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from typer.testing import CliRunner

import fedlab
import toy
from fedlab.cli.app import app
from fedlab.config.engine_options import RayConfig
from fedlab.engines import processes, ray, ray_cluster
from fedlab.engines.client_host import node_partitions
from fedlab.engines.flower_internals import task_identity
from fedlab.engines.pool import WORKER_LOG
from fedlab.engines.pool_worker import Setup
from fedlab.engines.ray_cluster import Node, RayCluster, probe
from fedlab.errors import ConfigError, RunError
from fedlab.flower_apps.client import APP
from fedlab.flower_apps.engine import AppEngine
from fedlab.flower_apps.project import FlowerProject
from fedlab.flower_apps.run import LOG, FlowerRun
from fedlab.runs.directory import RUN_DIRECTORY
from fedlab.runs.result import Result
from flower_apps import OLD_CLIENT, OLD_SERVER, ONE_WAY, ONE_WAY_CLIENT, write_app
from ray_nodes import VARIABLES, ray_nodes
from waiting import wait_until

NODES = """
import os, pathlib, ray, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    assert os.environ["FEDLAB_PLUGIN_PATH"]  # which Ray was started without
    if "hangs" in message.content:
        pathlib.Path(os.environ["FEDLAB_RUN_DIRECTORY"], "hangs").touch()
        time.sleep(600)
    time.sleep(0.2)
    return Message(RecordDict({"c": ConfigRecord({"node": ray.get_runtime_context().get_node_id()})}), reply_to=message)
"""
SHOWS_KEY = """
    import os, subprocess
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    print("the key is", os.environ["WANDB_API_KEY"] + ", and", commands.count("a-secret"), "can be seen")
"""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each."""
    with pytest.MonkeyPatch.context() as patch, ray_nodes() as found:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        yield found


def test_a_head_that_is_not_there_is_told_at_once():
    (port,) = processes.free_ports(1)
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at 127.0.0.1:{port}: connection refused.*ray start"):
        probe(f"127.0.0.1:{port}")
    for address in ("127.0.0.1", "ray://127.0.0.1:10001", "127.0.0.1:99999"):
        with pytest.raises(ConfigError, match="is no address of a Ray head"):
            probe(address)


def test_what_fits_is_counted_node_by_node():
    both = RayCluster("a", (Node("x", 3, 0), Node("y", 4, 1)), 7, 1)
    assert (both.slots(2, 0), both.slots(1, 0.5), both.slots(4, 1), both.slots(8, 0)) == (3, 2, 1, 0)
    assert both.describe() == "2 nodes with 7 CPUs and 1 GPUs"


def test_a_machine_that_is_no_node_is_told_what_to_do(monkeypatch):
    said = "[2026-11-27 10:00:00,1 E 7 8] rpc_client.h:203: Failed to connect to GCS"
    monkeypatch.setattr(ray_cluster, "_ask", lambda address: {"error": said})
    with pytest.raises(ConfigError, match="no node of a Ray cluster that answers; .*: Failed to connect to GCS$"):
        probe("auto")
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"takes no connection from this machine.*ray start --address={address}"):
            probe(address)


@pytest.mark.engine
def test_a_port_on_which_no_head_listens_is_told_in_time(monkeypatch):
    monkeypatch.setattr(ray_cluster, "PROBE_SECONDS", 1.0)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(ConfigError, match="something answers at .*, but no Ray head within 1 s"):
        probe(f"127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.engine
def test_cells_run_on_a_cluster_with_the_bits_of_this_machine(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    preset = toy.write_preset(tmp_path, **{**toy.PLUGIN, "rounds": 1})
    arguments = ["compare", preset, "--strategies", "source_only", "device=cpu", "--seeds"]
    result = CliRunner().invoke(app, [*arguments, "2", "--on", f"ray:{cluster.address}"])
    assert result.exit_code == 0, result.output
    assert f"up to 2 at a time on Ray at {cluster.address}" in result.output
    remote = fedlab.Comparison.read(tmp_path / "comparisons" / "toy")
    assert [cell.device[:5] for cell in remote.cells] == ["cpu ("] * 2
    assert f"--on ray:{cluster.address}" in remote.command
    here = CliRunner().invoke(app, [*arguments, "1", "--jobs", "1", "--out", "here"])
    assert here.exit_code == 0, here.output
    assert fedlab.Comparison.read("here").results[0][1].weights_sha256 == remote.results[0][1].weights_sha256
    refused = CliRunner().invoke(app, [*arguments, "1", "--on", f"ray:{cluster.address},cpus=2"])
    assert "no node of the Ray cluster has as many (2 nodes with 2 CPUs and 0 GPUs)" in " ".join(refused.output.split())


def run_app(folder: Path, runs: Path, **options: str) -> Result:
    """Run a Flower app in this process, or by the engine that the options name."""
    project = FlowerProject.read(folder)
    app = FlowerRun(project, threads=1, engine=AppEngine.split(options, project.config)[0])
    return app.run(app.create(runs))


@pytest.mark.engine
def test_runs_and_flower_apps_have_the_bits_of_one_process_and_outlive_an_actor(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("fedlab.flower_apps.run.write_page", lambda result: result)
    options = {"engine": "ray", "ray.address": cluster.address, "ray.cpus": "0.5"}
    died = tmp_path / "died"
    dies = f"import os, pathlib\nif {APP!r} in os.environ and not os.path.exists({str(died)!r}):\n"
    dies += (
        f"    pathlib.Path({str(died)!r}).touch()\n    os._exit(1)\n"  # as its module is imported, by a first message
    )
    here, there = (
        fedlab.run(toy.write_preset(tmp_path, **toy.PLUGIN), runs=tmp_path / "runs", overrides=one)
        for one in ({"engine": "inprocess"}, options)
    )
    assert there.weights_sha256 == here.weights_sha256 and there.manifest["engine"] == "ray"
    for name, apps in {"older": (OLD_SERVER, dies + OLD_CLIENT), "state": (ONE_WAY, ONE_WAY_CLIENT)}.items():
        folder = write_app(tmp_path / name, *apps)
        here, there = run_app(folder, tmp_path / "runs"), run_app(folder, tmp_path / "runs", **options)
        assert there.weights_sha256 == here.weights_sha256
        assert [one["clients"] for one in there.rounds] == [one["clients"] for one in here.rounds]
    notes = (tmp_path / "runs" / "tiny-app-0-2" / "events.jsonl").read_text()
    assert died.exists() and "another one takes its message" in notes
    lacking = f"import os\nif {APP!r} in os.environ:\n    import no_such_package\n{OLD_CLIENT}"
    with pytest.raises(RunError, match="client-0: on .*: tiny-app needs the package 'no_such_package', which is not"):
        run_app(write_app(tmp_path / "lacking", OLD_SERVER, lacking), tmp_path / "runs", **options)


@pytest.mark.engine
def test_cells_on_a_cluster_do_not_hold_what_their_clients_wait_for(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    server = OLD_SERVER.replace("def server_fn(context):", f"def server_fn(context):{SHOWS_KEY}")
    folder = str(write_app(tmp_path / "app", server, OLD_CLIENT))
    options = ["engine=ray", f"ray.address={cluster.address}", "--seeds", "3", "--on", f"ray:{cluster.address}"]
    result = CliRunner().invoke(app, ["compare", folder, *options])
    assert result.exit_code == 0, result.output
    assert "up to 2 at a time" in result.output  # and there are two CPUs
    alone = FlowerRun(FlowerProject.read(folder), 2, threads=1)
    cell, remote = fedlab.Comparison.read(tmp_path / "comparisons" / "app").results[-1]
    assert "the key is a-secret, and 0 can be seen" in (remote.directory / LOG).read_text()
    assert cell.seed == 2 and alone.run(alone.create(tmp_path)).weights_sha256 == remote.weights_sha256


@pytest.mark.engine
def test_a_client_that_fits_on_no_node_and_a_head_that_is_gone_are_told_before_a_run_is_made(cluster, tmp_path):
    options = {"engine": "ray", "ray.address": cluster.address, "ray.cpus": 2}
    with pytest.raises(ConfigError, match="a client takes 2 CPUs and 0 GPUs, and no node of the Ray cluster"):
        fedlab.run(toy.write_preset(tmp_path, **toy.PLUGIN), runs=tmp_path / "runs", overrides=options)
    options["ray.address"] = "127.0.0.1:1"
    with pytest.raises(ConfigError, match="no Ray cluster answers at 127.0.0.1:1"):
        fedlab.run(toy.write_preset(tmp_path, **toy.PLUGIN), runs=tmp_path / "runs", overrides=options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.engine
def test_another_version_of_ray_is_told(cluster):
    cluster.pretend("2.9.0")
    try:
        with pytest.raises(ConfigError, match="runs Ray 2.9.0 on Python .*; all machines need the same versions"):
            probe(cluster.address)
    finally:
        cluster.pretend("")


@pytest.mark.engine
def test_a_run_waits_for_room_outlives_a_node_and_a_client_that_hangs_and_says_that_the_head_is_gone(
    cluster, tmp_path, monkeypatch
):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "says_its_node.py").write_text(NODES)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    setup = Setup("says_its_node:app", {}, node_partitions(2), 1, 1, 0, {RUN_DIRECTORY: str(tmp_path)})
    options = RayConfig(address=cluster.address, cpus=1.0, gpus=0.0)
    log = tmp_path / WORKER_LOG
    cluster.hold()
    waiting = "waiting for the Ray cluster"
    release = threading.Thread(
        target=lambda: wait_until(lambda: log.exists() and waiting in log.read_text(), waiting) and cluster.release()
    )
    release.start()
    with ray.open_grid(setup, options, tmp_path) as grid, task_identity(1, 1):
        release.join()

        def ask(content: RecordDict) -> set[str]:
            replies = grid.send_and_receive([Message(content, node, "query") for node in grid.get_node_ids()])
            return {reply.content["c"]["node"] for reply in replies if not reply.has_error()}

        def both() -> set[str]:
            """Ask until clients have been on both nodes."""
            return wait_until(lambda: len(found := ask(RecordDict())) == 2 and found, "clients on both nodes")

        first = both()
        cluster.kill()
        cluster.add()
        second = both()
        assert len(first | second) == 3  # the head, the node that died and the one that came
        assert "another one takes its message" in log.read_text()

        hangs = grid.push_messages([Message(RecordDict({"hangs": ConfigRecord()}), grid.get_node_ids()[0], "query")])
        grid.pull_until(hangs, time.monotonic() + 1)
        wait_until((tmp_path / "hangs").exists, "a client to hang")
        grid.abandon(hangs)
        assert both() == second  # its place was given to another one

        cluster.kill_head()
        with pytest.raises(RunError, match=f"the Ray cluster at {cluster.address} is gone"):
            wait_until(lambda: ask(RecordDict()) == {"no node"}, "the end of the connection")
    assert cluster.process.poll() is None
