"""Latents of a run's model: what is opened, paths, directions against a plain regression, walks; the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from configs import DATA, make
from fedlab import launch
from fedlab.cli.app import app
from fedlab.data.molecules import graphs
from fedlab.errors import ConfigError, DataError, RunError
from fedlab.inference import latent_space
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.workloads.molecules import Molecules

SMALL = {"max_examples": 300, "adjacency_layers": 4, "node_layers": 4, "samples": 0}
OPTIONS = {f"{'data' if name in DATA else 'molecules'}.{name}": value for name, value in SMALL.items()}


def model(workload):
    """A flow whose layers do something."""
    with seeded("flow"):
        made = workload.model()
        for layer in [*made.adjacency, *made.nodes]:
            torch.nn.init.normal_(layer.head.linear.weight, std=0.02)
    return made.eval()


@pytest.fixture
def space():
    workload = make(Molecules, **SMALL)
    return latent_space.LatentSpace(workload, model(workload), "flow", 3)


@pytest.fixture
def run(tmp_path):
    directory = RunDirectory.create(tmp_path, launch.prepare("graphnvp-qm9", {**OPTIONS, "rounds": 1}))
    directory.checkpoints.save(1, {"arrays": model(make(Molecules, **SMALL)).state_dict()}, keep=1)
    return directory


def test_a_run_is_opened_with_its_newest_model(run, space):
    opened = latent_space.LatentSpace.open(run.path)
    assert (opened.name, opened.round) == (run.path.name, 1)
    table = space.workload.tables()[1].select(range(7))
    assert torch.equal(opened.encode(table), space.encode(table))


def test_other_runs_and_runs_without_a_checkpoint_are_refused(tmp_path):
    digits = RunDirectory.create(tmp_path, launch.prepare("fedavg-digits", {"data.max_examples": 200}))
    with pytest.raises(ConfigError, match="learned digits; latents are looked at of molecules"):
        latent_space.LatentSpace.open(digits.path)
    empty = RunDirectory.create(tmp_path, launch.prepare("graphnvp-qm9", OPTIONS))
    with pytest.raises(RunError, match=r"holds no checkpoint yet; `fedlab resume"):
        latent_space.LatentSpace.open(empty.path)


def test_a_path_begins_and_ends_at_its_molecules_and_is_a_straight_line(space):
    first, second = "CCOC", "c1ccccc1"
    assert space.interpolate(first, second, 5)[0] == "CCOC" and space.interpolate(first, second, 5)[-1] == "c1ccccc1"
    a, b = space.encode_smiles(first), space.encode_smiles(second)
    assert space.interpolate(first, second, 5)[2] == space.decode(0.5 * a + 0.5 * b)[0]
    with pytest.raises(DataError, match="it has 10 heavy atoms"):
        space.interpolate(first, "CCCCCCCCCC", 5)


def test_canonical_order_holds_for_single_molecules_too():
    workload = Molecules(**SMALL, order="canonical")
    space = latent_space.LatentSpace(workload, model(workload), "flow", 0)
    table = workload.tables()[1]
    row = next(row for row in range(50) if table.smiles[row] == table.decoded_smiles[row])
    torch.testing.assert_close(space.encode_smiles(table.smiles[row]), space.encode(table.select([row])))


def test_a_direction_is_the_covariance_and_stands_beside_a_ridge_regression(space):
    found = latent_space.fit_direction(space, "logp")
    of_training, of_test = space.workload.tables()
    training, test = latent_space._usable(of_training, 2000), latent_space._usable(of_test, 1000)
    x, y = space.encode(training).double().numpy(), latent_space.property_values(training.decoded_smiles, "logp")
    there = space.encode(test).double().numpy()
    covariance = np.array([np.cov(x[:, column], y)[0, 1] for column in range(x.shape[1])])
    unit = covariance / np.linalg.norm(covariance)
    assert found.unit.numpy() == pytest.approx(unit, abs=1e-6)
    assert found.std == pytest.approx((x @ unit).std())
    assert np.array_equal(found.true, latent_space.property_values(test.decoded_smiles, "logp"))
    assert found.correlation == pytest.approx(np.corrcoef(there @ unit, found.true)[0, 1])
    centered, one = x - x.mean(0), np.eye(x.shape[1])
    fits = [
        np.linalg.solve(centered.T @ centered + p * one, centered.T @ (y - y.mean())) for p in latent_space.PENALTIES
    ]
    wanted = [np.corrcoef(there @ fit, found.true)[0, 1] for fit in fits]
    assert min(abs(found.regression - one) for one in wanted) < 1e-6
    assert found.regression > found.correlation > 0.3  # latents of a flow that is nearly the identity are the graph


def test_a_walk_goes_from_molecules_along_a_direction(space, monkeypatch):
    monkeypatch.setattr(latent_space, "NUM_STARTS", 6)
    along = latent_space.fit_direction(space, "logp")
    walk = latent_space.traverse(space, along, steps=5)
    starts = latent_space._usable(space.workload.tables()[1], 6)
    assert walk.steps.tolist() == [-4, -2, 0, 2, 4] and walk.values.shape == (6, 5)
    assert [line[2] for line in walk.decoded] == list(starts.decoded_smiles)  # a flow inverts
    assert walk.values[:, 2] == pytest.approx(latent_space.property_values(starts.decoded_smiles, "logp"))
    point = space.encode(starts.select([4])) + 2 * along.std * along.unit
    assert space.decode(point)[0] == walk.decoded[4][3]
    assert walk.valid[2] == 1 and walk.means[2] == pytest.approx(walk.values[:, 2].mean())
    gone = latent_space.Traversal(walk.steps, walk.decoded, np.full((6, 5), np.nan))
    assert np.isnan(gone.means).all() and (gone.valid == 0).all()


# --- the command ---


@pytest.mark.engine
def test_the_command_writes_pictures_and_says_what_they_show(run, monkeypatch):
    monkeypatch.setattr(latent_space, "NUM_STARTS", 6)
    monkeypatch.setenv("COLUMNS", "120")
    found = CliRunner().invoke(app, ["molecules", str(run.path), "--pair", "CCO>CCN", "--steps", "3"])
    assert found.exit_code == 0, found.output
    for word in ("regression", "direction", "qed", "logp", "points on 1 path are molecules"):
        assert word in found.output
    sizes = {}
    for path in (run.path / "latents").glob("*.png"):
        with Image.open(path) as image:
            sizes[path.name] = image.size
    assert set(sizes) == {"path.png", "qed.png", "logp.png"} and all(min(size) > 200 for size in sizes.values())


def test_a_pair_that_is_none_is_refused(run):
    found = CliRunner().invoke(app, ["molecules", str(run.path), "--pair", "CCO"])
    assert found.exit_code == 1 and "--pair 'CCO' is no pair; write two SMILES with > between" in found.output


def test_without_pairs_paths_are_between_test_molecules_that_lose_nothing(space):
    from fedlab.cli.molecules import _first_pairs

    pairs = _first_pairs(space)
    assert len(pairs) == 3
    for one in (text for pair in pairs for text in pair):
        _, graph = graphs.parse_smiles(one, space.workload.vocabulary)
        assert not graph.lossy_flags & graphs.ALTERING_FLAGS
