"""States that stay with clients: the same bits in one process, in several, in Ray's actors and over the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from commands import Command, end, laptop
from fedlab.deploy import provision
from fedlab.engines import processes
from fedlab.runs.result import Result
from fedlab.scaffold import write_package

pytestmark = pytest.mark.engine

OPTIONS = ("workload=my_mod:MyMod", "data.num_clients=2", "rounds=3", "threads=1")
PRESET = """
strategy = "ditto"
server.pretrain_steps = 0
client.steps = 2
client.batch_size = 16
"""
CLIENTS = ("client-0", "client-1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a workload and a preset."""
    folder = write_package("workload", "my_mod", tmp_path_factory.mktemp("package"))[0].parent
    (folder / "own.toml").write_text(PRESET)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Result:
    return finished(Command(folder, "run", "own.toml", *OPTIONS, "--engine", "inprocess", "--quiet"), folder, "own")


def finished(command: Command, folder: Path, name: str) -> Result:
    assert command.code() == 0, command.said
    return Result.read(folder / "runs" / f"{name}-0")


def models(folder: Path) -> list[dict[str, torch.Tensor]]:
    """The personal models after the last round, by client."""
    paths = sorted(folder.glob("client-state/*/3.pt"))
    return [torch.load(path, weights_only=True)["model"] for path in paths]


def check_same(found: list[dict[str, torch.Tensor]], expected: Result) -> None:
    wanted = models(expected.directory)
    assert len(found) == len(wanted) == len(CLIENTS)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(found, wanted, strict=True) for name in other)


@pytest.mark.parametrize("engine", ["ray", "pool"])
def test_clients_in_other_processes_find_the_run_directory(folder, expected, engine):
    command = Command(folder, "run", "own.toml", *OPTIONS, f"name={engine}", "--engine", engine, "--quiet")
    run = finished(command, folder, engine)
    assert run.weights_sha256 == expected.weights_sha256
    assert [line["clients"] for line in run.rounds] == [line["clients"] for line in expected.rounds]
    assert [line["bytes"] for line in run.rounds] == [line["bytes"] for line in expected.rounds]
    check_same(models(run.directory), expected)


def test_clients_over_the_network_keep_their_own(folder, expected, tmp_path):
    provision.create_credentials(tmp_path / "certs", clients=list(CLIENTS))
    address = f"127.0.0.1:{processes.free_ports(1)[0]}"
    server = ("serve", "own.toml", *OPTIONS, "name=grpc", "--address", address, "--certs", str(tmp_path / "certs"))
    started = [Command(folder, *server, "--wait", "400", "--json")]
    homes = [laptop(tmp_path / name, tmp_path / "certs", name) for name in CLIENTS]
    try:
        for home in homes:
            (home / "my_mod.py").write_text((folder / "my_mod.py").read_text())
            started.append(Command(home, "join", address, "--once", "--give-up-after", "100"))
        served = finished(started[0], folder, "grpc")
        assert [command.code(30) for command in started[1:]] == [0, 0]
    finally:
        end(started)
    assert served.weights_sha256 == expected.weights_sha256
    assert [line["clients"] for line in served.rounds] == [line["clients"] for line in expected.rounds]
    assert not (served.directory / "client-state").exists()
    check_same([models(home / "clients" / name)[0] for home, name in zip(homes, CLIENTS, strict=True)], expected)
