"""Clients that join with folders of their own photographs: same bits as the simulation, and predictions afterwards.

One of them reaches the server through a proxy, another on the server's machine past a proxy that is not there.
"""

from __future__ import annotations

import csv
import io
import shutil

import pytest

import fedlab
from commands import SHORT, Command, end, laptop
from fedlab.deploy import provision
from fedlab.engines import processes
from fedlab.runs.result import Result
from photos import HUES, needs_backbone, write_photos
from tunnels import tunnel_proxy

OWN = {**SHORT, "device": "cpu", "image_folder.size": 64, "dualadapt.components": 3}


@pytest.mark.engine
@needs_backbone
def test_deployed_photographs_give_the_bits_of_the_simulation_and_a_model_that_predicts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = write_photos(tmp_path / "photos")
    (root / "targets" / "bob" / "damaged.jpg").write_bytes(b"damaged")
    server = tmp_path / "server"
    shutil.copytree(root / "source", server / "data" / "source")
    provision.create_credentials(server / "certs", hosts=["lab.invalid"], clients=["alice", "bob"])
    (port,) = processes.free_ports(1)
    options = [f"{key}={value}" for key, value in OWN.items()]
    options += [f"data.root={server / 'data'}", "image_folder.targets=alice,bob"]
    link = ("--address", f"127.0.0.1:{port}", "--wait", "200")
    socks = {"ALL_PROXY": "socks5h://127.0.0.1:9", "all_proxy": "socks5h://127.0.0.1:9"}
    commands = [Command(server, "serve", "adapt-photos", *options, *link, **socks)]
    try:
        with tunnel_proxy() as proxy:
            for name, host, url in (("alice", "lab.invalid", proxy.url), ("bob", "localhost", "http://127.0.0.1:9")):
                folder = laptop(tmp_path / name, server / "certs", name)
                data = ("--domain", name, "--data", str(root / "targets" / name), "--once", "--device", "cpu")
                commands.append(Command(folder, "join", f"{host}:{port}", *data, HTTPS_PROXY=url, https_proxy=url))
            assert [command.code(240) for command in commands] == [0, 0, 0], commands[0].said
            assert len(proxy.requests) >= 2  # the probe's and Flower's
    finally:
        end(commands)
    assert "by way of the proxy 127.0.0.1" in commands[1].said
    assert "by way of" not in commands[2].said
    with pytest.warns(UserWarning, match="damaged.jpg"):
        simulated = fedlab.run("adapt-photos", runs=tmp_path / "runs", overrides={**OWN, "data.root": str(root)})
    deployed = Result.read(server / "runs" / "adapt-photos-0")
    assert deployed.weights_sha256 == simulated.weights_sha256
    assert deployed.final() == simulated.final()
    assert "damaged.jpg: it is none of PNG" in commands[2].said  # its owner is told in the terminal
    folder = str(root / "targets" / "alice" / "leaf")
    predict = Command(tmp_path / "alice", "predict", "clients/alice", folder, "--csv")
    assert predict.code() == 0, predict.said
    rows = list(csv.DictReader(io.StringIO(predict.said)))
    assert [row["file"] for row in rows] == [f"{folder}/{number}.png" for number in range(6)]
    assert {row["class"] for row in rows} | {row["second"] for row in rows} <= set(HUES)
