"""A workload of a user's own on every engine, and personal models that stay with its clients: the same bits on each.

The workload is found by its import path, and missed with a sentence on both sides. The engines share these runs, since
each starts many processes.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from commands import Command, end, laptop
from fedlab.deploy import provision
from fedlab.engines import processes
from fedlab.plugins import PLUGIN_PATH
from fedlab.runs.result import Result
from fedlab.scaffold import write_package

pytestmark = pytest.mark.engine

OPTIONS = ("workload=my_mod:MyMod", "my_mod.noise=0.3", "data.num_clients=2", "rounds=2", "threads=1")
PRESET = """
strategy = "ditto"
server.pretrain_steps = 0
client.steps = 2
client.batch_size = 16
client.lr_schedule = "step"
client.lr_step_rounds = 1
"""
CLIENTS = ("client-0", "client-1")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A folder with my_mod.py, which is on nobody's search path, and a preset of nothing but options of ours."""
    folder = write_package("workload", "my_mod", tmp_path_factory.mktemp("package"))[0].parent
    (folder / "own.toml").write_text(PRESET)
    return folder


@pytest.fixture(scope="module")
def expected(package: Path) -> Result:
    """The run in one process, in the folder of the module."""
    command = Command(package, "run", "own.toml", *OPTIONS, "--engine", "inprocess", "--quiet")
    return finished(command, package / "runs" / "own-0")


def finished(command: Command, run: Path) -> Result:
    assert command.code() == 0, command.said
    return Result.read(run)


def personal_models(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The personal models after the last round, by client."""
    return [torch.load(path, weights_only=True)["model"] for path in sorted(folder.glob("client-state/*/2.pt"))]


def check_same(found: list[dict[str, torch.Tensor]], expected: Result) -> None:
    wanted = personal_models(expected.directory)
    assert len(found) == len(wanted) == len(CLIENTS)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(found, wanted, strict=True) for name in other)


def check_same_run(run: Result, expected: Result) -> None:
    assert run.weights_sha256 == expected.weights_sha256
    assert [line["clients"] for line in run.rounds] == [line["clients"] for line in expected.rounds]
    assert [line["bytes"] for line in run.rounds] == [line["bytes"] for line in expected.rounds]


def test_a_module_in_the_current_folder_gives_the_same_bits_through_ray(package, expected):
    command = Command(package, "run", "own.toml", *OPTIONS, "name=ray", "--engine", "ray", "--quiet")
    run = finished(command, package / "runs" / "ray-0")
    check_same_run(run, expected)
    check_same(personal_models(run.directory), expected)


def test_a_module_in_a_folder_of_plugins_gives_the_same_bits_in_worker_processes(package, expected, tmp_path):
    (tmp_path / "own.toml").write_text(PRESET)
    chosen = ("--engine", "pool", "--quiet")
    command = Command(tmp_path, "run", "own.toml", *OPTIONS, *chosen, **{PLUGIN_PATH: str(package)})
    run = finished(command, tmp_path / "runs" / "own-0")
    check_same_run(run, expected)
    check_same(personal_models(run.directory), expected)


@pytest.fixture(scope="module")
def federation(package, tmp_path_factory):
    """A server in the module's folder; one client has the module in its own, another first lacks it, then is told."""
    root = tmp_path_factory.mktemp("federation")
    provision.create_credentials(root / "certs", clients=list(CLIENTS))
    address = f"127.0.0.1:{processes.free_ports(1)[0]}"
    serve = Command(
        package,
        *("serve", "own.toml", *OPTIONS, "name=grpc", "--address", address, "--certs", str(root / "certs")),
        *("--wait", "400", "--json"),
    )
    here, there = (laptop(root / name, root / "certs", name) for name in CLIENTS)
    (here / "my_mod.py").write_text((package / "my_mod.py").read_text())
    started = [serve]

    def join(folder: Path, **variables: str) -> Command:
        arguments = ("join", address, "--once", "--give-up-after", "100")
        started.append(Command(folder, *arguments, **variables))
        return started[-1]

    try:
        first = join(here)
        lacking = join(there)
        refused = lacking.code()
        second = join(there, **{PLUGIN_PATH: str(package)})
        yield SimpleNamespace(
            run=finished(serve, package / "runs" / "grpc-0"),
            clients=[(command.code(30), command.said) for command in (first, second)],
            models=[
                personal_models(home / "clients" / name)[0] for home, name in zip((here, there), CLIENTS, strict=True)
            ],
            refused=(refused, " ".join(lacking.said.split())),
        )
    finally:
        end(started)


def test_clients_over_the_network_find_it_in_their_own_folders(federation, expected):
    assert [code for code, _ in federation.clients] == [0, 0], federation.clients
    assert federation.run.weights_sha256 == expected.weights_sha256


def test_clients_over_the_network_keep_their_own_models(federation, expected):
    run = federation.run
    assert [line["clients"] for line in run.rounds] == [line["clients"] for line in expected.rounds]
    assert not (run.directory / "client-state").exists()
    check_same(federation.models, expected)


def test_a_client_whose_machine_lacks_the_module_is_told_so_and_the_server_too(federation):
    missing = "workload 'my_mod:MyMod': there is no module 'my_mod' on this machine; install"
    code, said = federation.refused
    assert code == 1
    assert f"this client was refused: {missing}" in said
    assert "Traceback" not in said
    events = [json.loads(line) for line in (federation.run.directory / "events.jsonl").read_text().splitlines()]
    (refused,) = [event for event in events if event["event"] == "refused"]
    assert refused["client"] == "client-1"
    assert refused["reason"].startswith(missing)
