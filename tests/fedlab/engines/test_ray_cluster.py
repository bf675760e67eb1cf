"""A Ray cluster of two nodes on this machine: what is said about one, and what runs on it."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

import fedlab
import toy
from fedlab.cli.app import app
from fedlab.engines import processes, ray_cluster
from fedlab.engines.ray_cluster import Node, RayCluster, probe
from fedlab.errors import ConfigError
from ray_nodes import LOOPBACK_ONLY, ray_nodes


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each."""
    with pytest.MonkeyPatch.context() as patch, ray_nodes() as found:
        for name, value in LOOPBACK_ONLY.items():
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
