"""What is drawn of clients, against independent formulas and against what the runs reported."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import fedlab
import toy
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import RunError
from fedlab.inference.predict import Recalled
from fedlab.registry import load_config
from fedlab.report import client_plots
from fedlab.runs.result import Result


@pytest.fixture
def result(comparison, tmp_path):
    """A copy of DualAdapt's run with the first seed."""
    cell = next(cell for cell in comparison.cells if cell.strategy == "dualadapt" and cell.seed == 0)
    kept = shutil.ignore_patterns(client_plots.FILE)
    return Result.read(shutil.copytree(comparison.path(cell), tmp_path / "run", ignore=kept))


@pytest.mark.engine
def test_confusions_are_those_behind_the_reported_accuracy(result):
    for view in client_plots.load(result):
        assert view.confusion.sum() == 90 and view.confusion.shape == (3, 3)
        reported = result.rounds[-1]["clients"][view.name]["accuracy_average"]
        assert np.trace(view.confusion) / 90 == pytest.approx(reported, abs=1e-6)
        labels = toy.blobs(90, {"near": 0.5, "far": 1.0}[view.name], seed=8)["y"]
        assert view.confusion.sum(1).tolist() == labels.bincount(minlength=3).tolist()


def test_maps_have_the_points_of_both_domains_before_and_after(result):
    near = client_plots.load(result)[0]
    for cloud in (near.source_before, near.target_before, near.source_after, near.target_after):
        assert cloud.shape == (90, 2) and np.isfinite(cloud).all()
    assert not np.allclose(near.target_before, near.target_after)
    assert near.source_labels.tolist() == toy.blobs(90, 0.0, seed=8)["y"].tolist()
    assert 0 < near.explained[1] <= near.explained[0] < 1


def test_the_map_is_of_the_clients_own_features(result):
    """Distances between the map's points are those of G's features, projected: never longer, and alike."""
    module = Recalled(result.directory / "checkpoints" / "round-2.pt", load_config(result.config)).in_place_of(1)[1]
    with torch.no_grad():
        z = module.features(toy.blobs(90, 1.0, seed=8)["x"]).numpy()
    far = client_plots.load(result)[1]
    apart, drawn = (np.linalg.norm(cloud[:1] - cloud[1:], axis=1) for cloud in (z, far.target_after))
    assert (drawn <= apart + 1e-4).all() and np.corrcoef(apart, drawn)[0, 1] > 0.8


def test_weights_are_ranks_of_likelihoods_under_the_clients_own_mixture(result):
    recalled = Recalled(result.directory / "checkpoints" / "round-2.pt", load_config(result.config))
    arrays = recalled.content["strategy"]["mixtures"][1]
    normals = Independent(Normal(arrays["means"], arrays["variances"].sqrt()), 1)
    mixture = MixtureSameFamily(Categorical(logits=arrays["log_weights"]), normals)
    with torch.no_grad():
        z = recalled.in_place_of(1)[1].features(toy.blobs(90, 1.0, seed=8)["x"]).double()
    below = (arrays["quantiles"] <= mixture.log_prob(z)[:, None]).sum(1)
    weights = (1 + below) / (1 + len(arrays["quantiles"]))
    view = client_plots.load(result)[1]
    assert view.target_weights.tolist() == np.histogram(weights.numpy(), 20, (0, 1))[0].tolist()
    assert view.source_weights.sum() == 90


def test_a_strategy_without_mixtures_has_no_weights(comparison, tmp_path):
    run = Result.read(shutil.copytree(comparison.path(comparison.cells[0]), tmp_path / "run"))
    view = client_plots.load(run)[0]
    assert not len(view.source_weights) and len(view.confusion)


def test_a_second_look_reads_what_the_first_one_kept(result, monkeypatch):
    first = client_plots.load(result)
    monkeypatch.setattr(client_plots, "compute", None)  # must not be needed
    for one, other in zip(first, client_plots.load(result), strict=True):
        assert one.name == other.name
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in client_plots.ARRAYS)


def test_what_was_kept_of_other_weights_is_computed_again(result):
    first = client_plots.load(result)[0]
    result.manifest["weights_sha256"] = "0" * 64
    with np.load(result.directory / client_plots.FILE) as stored:
        arrays = {**stored, "0 confusion": np.zeros((3, 3))}
    np.savez(result.directory / client_plots.FILE, **arrays)
    assert np.array_equal(client_plots.load(result)[0].confusion, first.confusion)


def test_a_model_without_features_has_no_map(blobs, tmp_path):
    plain = {"strategy": "fedavg", "blobs.client_labels": True, "blobs.headless": True, "checkpoint.keep": 9}
    known = {name: value for name, value in toy.SMALL.items() if not name.startswith("dualadapt")}
    result = fedlab.run(toy.write_preset(tmp_path, **{**known, **plain, "rounds": 1}), runs=tmp_path)
    view = client_plots.load(result)[0]
    assert not len(view.target_after) and view.confusion.sum() == 90


def test_no_or_damaged_checkpoints_are_said(result):
    (result.directory / "checkpoints" / "round-2.pt").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"round-2\.pt cannot be read"):
        client_plots.load(result)
    shutil.rmtree(result.directory / "checkpoints")
    with pytest.raises(RunError, match="no checkpoint"):
        client_plots.load(result)


def test_what_nobody_expects_of_a_model_is_said(result, monkeypatch):
    monkeypatch.setattr(client_plots, "rows_of", lambda *_: 1 / 0)
    with pytest.raises(RunError, match="nothing can be drawn of the clients of .*ZeroDivisionError"):
        client_plots.load(result)


def test_the_plane_is_that_of_principal_components():
    clouds = [np.random.default_rng(i).normal(size=(40 + i, 5)) * [5, 3, 1, 1, 1] for i in range(3)]
    found, explained = client_plots.plane(clouds)
    reference = PCA(2).fit(np.concatenate(clouds))
    assert explained == pytest.approx(reference.explained_variance_ratio_)
    for cloud, points in zip(clouds, found, strict=True):
        assert np.abs(points) == pytest.approx(np.abs(reference.transform(cloud)), abs=1e-5)


def test_the_plane_of_one_dimension_is_a_line():
    points, explained = client_plots.plane([np.arange(4.0)[:, None]])
    assert points[0][:, 1].tolist() == [0.0] * 4 and explained.tolist() == [1.0, 0.0]


def test_rows_of_pixels_are_few_and_keep_their_labels():
    """Features are a cell's largest pixel and its negative; labels, finer than the features, are the pixels."""
    y = torch.arange(4 * 8 * 8).view(4, 8, 8)
    data = ArrayDataset({"x": y[:, None].float(), "y": y})
    coarse = nn.Sequential(nn.MaxPool2d(2), _WithNegative())  # the pixel at a cell's middle: (4, 2, 4, 4)
    rows, labels = client_plots.rows_of(coarse, data, count=20)
    assert rows.shape == (20, 2) and labels.tolist() == rows[:, 0].tolist()
    assert len(set(labels.tolist())) == 20
    assert client_plots.rows_of(coarse, ArrayDataset({"x": data.columns["x"]}), 20)[1] is None


class _WithNegative(nn.Module):
    def forward(self, x):
        return torch.cat([x, -x], 1)


def test_features_of_other_shapes_are_refused_with_a_sentence():
    with pytest.raises(RunError, match="got 3 axes"):
        client_plots.rows_of(nn.Identity(), ArrayDataset({"x": torch.zeros(4, 5, 6)}), 3)
