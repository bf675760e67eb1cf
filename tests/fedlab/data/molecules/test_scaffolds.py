"""Who gets which molecules: every row once, and by the rule that was asked for."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fedlab.data.molecules import scaffolds, smiles
from fedlab.data.molecules.graphs import QM9
from fedlab.errors import ConfigError


@pytest.fixture(scope="module")
def molecules():
    return smiles.load_molecules(smiles.molecule_file("qm9", "test", None), QM9)


def shares(molecules, clients=4, by="iid", alpha=0.5, seed=0):
    return scaffolds.partition_molecules(molecules, clients, by, alpha, seed, QM9.no_atom)


@pytest.mark.parametrize("by", ["iid", "scaffold", "size", "dirichlet"])
def test_every_molecule_has_one_owner_always_the_same(molecules, by):
    parts = shares(molecules, by=by)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    assert all(torch.equal(part, part.sort().values) for part in parts)
    assert all(torch.equal(one, again) for one, again in zip(parts, shares(molecules, by=by), strict=True))


def test_a_scaffold_is_never_shared_and_clients_are_about_equal(molecules):
    parts = shares(molecules, by="scaffold")
    owned = [{molecules.scaffolds[row] for row in part} for part in parts]
    assert sum(map(len, owned)) == len(set(molecules.scaffolds))
    assert {len(part) for part in parts} == {250}


def test_by_size_the_first_client_has_the_smallest(molecules):
    sizes = (molecules.atoms != QM9.no_atom).sum(1)
    parts = shares(molecules, by="size")
    for smaller, larger in pairwise(parts):
        assert sizes[smaller].max() <= sizes[larger].min()


def test_a_small_alpha_skews_the_clusters(molecules):
    labels = scaffolds.scaffold_clusters(molecules.scaffolds)

    def skew(alpha):
        parts = shares(molecules, by="dirichlet", alpha=alpha)
        mixes = [torch.bincount(labels[part], minlength=31).double() / len(part) for part in parts]
        return float(torch.stack(mixes).std(0).mean())

    assert skew(0.3) > 3 * skew(1000.0)


def test_clusters_are_shapes_counted_by_hand():
    # Three five-membered rings of different atoms are one shape; no ring is another; a six-membered ring comes last.
    found = scaffolds.scaffold_clusters(("C1CCCC1", "", "C1CCOC1", "", "c1ccoc1", "C1CCCC1", "c1ccccc1"))
    assert found.tolist() == [0, 1, 0, 1, 0, 0, 2]


def test_rare_shapes_are_one_cluster(monkeypatch):
    monkeypatch.setattr(scaffolds, "MAX_CLUSTERS", 1)
    scaffolds.scaffold_clusters.cache_clear()
    assert scaffolds.scaffold_clusters(("", "", "C1CC1", "C1CCC1")).tolist() == [0, 0, 1, 1]
    scaffolds.scaffold_clusters.cache_clear()


@pytest.mark.parametrize(
    ("by", "sentence"),
    [
        ("iid", "40 examples cannot be split over 5 clients"),
        ("scaffold", "client . of 5 would hold 8 of 40 molecules shared out by scaffold"),
        (
            "size",
            "client 0 of 5 would hold 8 of 40 molecules shared out by size; at least 10 are needed: ask for fewer",
        ),
        ("dirichlet", "40 examples cannot be split over 5 clients"),
    ],
)
def test_a_client_with_too_few_is_refused(molecules, by, sentence):
    with pytest.raises(ConfigError, match=sentence):
        shares(molecules.select(range(40)), clients=5, by=by)


def test_an_empty_client_is_refused(molecules):
    rings = [row for row, scaffold in enumerate(molecules.scaffolds) if not scaffold]
    with pytest.raises(ConfigError, match="client 1 of 2 would hold 0 of .* molecules shared out by scaffold"):
        shares(molecules.select(rings), clients=2, by="scaffold")


def test_what_is_held_out_depends_on_seed_and_owner():
    rows = torch.arange(100, 150)
    train, test = scaffolds.train_test_rows(rows, 0.1, 0, "a")
    assert len(train) == 45 and len(test) == 5
    assert torch.equal(torch.cat([train, test]).sort().values, rows)
    assert torch.equal(scaffolds.train_test_rows(rows, 0.1, 0, "a")[1], test)
    assert not torch.equal(scaffolds.train_test_rows(rows, 0.1, 0, "b")[1], test)
    assert [len(part) for part in scaffolds.train_test_rows(rows[:10], 0.999, 0, "a")] == [1, 9]
    assert [len(part) for part in scaffolds.train_test_rows(rows[:10], 0.001, 0, "a")] == [9, 1]
