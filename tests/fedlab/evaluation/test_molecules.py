"""Scores of drawn molecules, counted by hand and against RDKit and scipy asked directly."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem.Crippen import MolLogP
from rdkit.Chem.Descriptors import MolWt
from rdkit.Chem.QED import qed
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from fedlab.evaluation.molecules import DESCRIPTORS, distribution_metrics, properties, validity_metrics

DRAWN = ["CCO", "c1ccccc1", "CC#N", "CCO", "C1CC1O", "NC=O"]
REAL = ["CCN", "Cc1ccccc1", "C1CCCC1", "CC(=O)O", "FCC"]


def test_validity_uniqueness_novelty_by_hand():
    found = validity_metrics(["CC", None, "CO", "CC", None, "CN", None, "CF"], {"CO", "CF"})
    assert found == {
        "samples": 8.0,
        "valid": 5.0,
        "validity": 5 / 8,
        "uniqueness": 4 / 5,
        "novelty": 2 / 4,
        "valid_unique_novel": 2 / 8,
    }
    assert found["valid_unique_novel"] == pytest.approx(found["validity"] * found["uniqueness"] * found["novelty"])


def test_what_cannot_be_measured_is_left_out():
    assert validity_metrics([None, None], set()) == {
        "samples": 2.0,
        "valid": 0.0,
        "validity": 0.0,
        "valid_unique_novel": 0.0,
    }
    assert validity_metrics([], set()) == {"samples": 0.0, "valid": 0.0}
    assert (
        distribution_metrics(["CC"], REAL) == {}
        and distribution_metrics([], REAL) == {}
        and distribution_metrics(DRAWN, []) == {}
    )
    assert "wasserstein_ring_sizes" not in distribution_metrics(["CC", "CO"], REAL)
    assert "distance_bonds" not in distribution_metrics(["C", "N"], REAL)


def test_distances_are_those_of_scipy_on_rdkits_numbers():
    found = distribution_metrics(DRAWN, REAL)
    ours, theirs = ([Chem.MolFromSmiles(text) for text in side] for side in (DRAWN, REAL))
    for name, of in (("qed", qed), ("logp", MolLogP), ("weight", MolWt)):
        wanted = wasserstein_distance([of(molecule) for molecule in ours], [of(molecule) for molecule in theirs])
        assert found[f"wasserstein_{name}"] == pytest.approx(wanted)
    assert found["wasserstein_ring_sizes"] == pytest.approx(wasserstein_distance([6, 3], [6, 5]))


def test_histograms_by_hand():
    found = distribution_metrics(["CC=O", "CC"], ["CN", "CC"])
    assert found["distance_atoms"] == pytest.approx(0.5 * (abs(4 / 5 - 3 / 4) + 1 / 5 + 1 / 4))
    assert found["distance_bonds"] == pytest.approx(1 / 3)  # one double bond of three
    assert properties(("c1ccccc1",)).bonds == {"SINGLE": 3, "DOUBLE": 3}  # kekulized
    assert properties(("C1CC1C1CCCC1",)).ring_sizes == (5, 3)


def test_the_frechet_distance_is_taken_on_descriptors_scaled_by_the_reference():
    def table(texts):
        return np.array([[of(Chem.MolFromSmiles(text)) for of in DESCRIPTORS.values()] for text in texts], float)

    real = table(REAL)
    deviation = np.where(real.std(0) > 0, real.std(0), 1)
    a, b = (table(DRAWN) - real.mean(0)) / deviation, (real - real.mean(0)) / deviation
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer molecules than descriptors: scipy says that its root is inaccurate
        root = sqrtm(s_a @ s_b).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a) + np.trace(s_b) - 2 * np.trace(root)
    assert distribution_metrics(DRAWN, REAL)["frechet"] == pytest.approx(wanted, rel=1e-3)
    assert distribution_metrics(REAL, REAL)["frechet"] == pytest.approx(0, abs=1e-6)
