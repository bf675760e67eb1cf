"""Molecules to graphs and back: by hand, all embedded ones round and round, the validity rule, the correction."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem

from fedlab.data.molecules import graphs, smiles
from fedlab.data.molecules.graphs import ALTERING_FLAGS, LOSSY_FLAGS, QM9, ZINC
from fedlab.errors import DataError
from fedlab.seeds import seeded

FULL = os.environ.get("FEDLAB_DATA", "")


def graph(text, vocabulary=QM9):
    return graphs.parse_smiles(text, vocabulary)[1]


def back(text, vocabulary=QM9, **how):
    found = graph(text, vocabulary)
    return graphs.to_smiles(found.bonds, found.atoms, vocabulary, **how)


def built(elements, *bonds, vocabulary=QM9):
    """A graph by hand: symbols, and (i, j, order from 1)."""
    atoms = np.full(vocabulary.size, vocabulary.no_atom, np.uint8)
    atoms[: len(elements)] = [vocabulary.elements.index(symbol) for symbol in elements]
    table = np.full((vocabulary.size, vocabulary.size), graphs.NO_BOND, np.uint8)
    for i, j, order in bonds:
        table[i, j] = table[j, i] = order - 1
    return table, atoms


def test_a_graph_by_hand():
    found = graph("CC#N")
    assert found.atoms.tolist() == [0, 0, 1] + [4] * 6
    wanted = np.full((9, 9), 3)
    wanted[0, 1] = wanted[1, 0] = 0
    wanted[1, 2] = wanted[2, 1] = 2
    assert (found.bonds == wanted).all() and found.lossy_flags == 0


def test_benzene_is_three_single_and_three_double_bonds():
    counts = Counter(graph("c1ccccc1").bonds[np.tril_indices(9, -1)].tolist())
    assert counts == {0: 3, 1: 3, 3: 30}
    assert back("c1ccccc1") == "c1ccccc1"


@pytest.mark.parametrize(
    ("text", "names", "returns"),
    [
        ("CCO", [], "CCO"),
        ("C[C@H](N)O", ["stereo"], "CC(N)O"),
        ("F/C=C/F", ["stereo"], "FC=CF"),
        ("C[NH3+]", ["charge"], "CN"),
        ("CC(=O)[O-]", ["charge"], "CC(=O)O"),
        ("C[N+](C)(C)C", ["charge"], None),
        ("[CH2]C", ["radical"], "CC"),
        ("[13CH3]C", ["isotope"], "CC"),
        ("C.O", ["fragments"], None),
    ],
)
def test_what_a_graph_does_not_hold_is_named(text, names, returns):
    assert graphs.flag_names(graph(text).lossy_flags) == names
    assert back(text) == returns


def rounds(found, vocabulary):
    """How each molecule comes back, counted by what its graph does not hold."""
    counts = Counter()
    for text, bonds, atoms, lossy_flags in zip(
        found.smiles, found.bonds.numpy(), found.atoms.numpy(), found.lossy_flags.tolist(), strict=True
    ):
        molecule = graphs.to_molecule(bonds, atoms, vocabulary)
        sane = Chem.SanitizeMol(molecule, catchErrors=True) == Chem.SANITIZE_NONE
        same = sane and graphs.canonical_smiles(molecule) == text
        if not lossy_flags & ALTERING_FLAGS:
            assert same, text
            assert lossy_flags & LOSSY_FLAGS["fragments"] or graphs.validated_smiles(molecule) == text
        counts[same] += 1
    return counts


def test_every_embedded_molecule_that_loses_nothing_comes_back():
    found = smiles.load_molecules(smiles.molecule_file("qm9", "test", None), QM9)
    assert len(found) == 1000 and not found.skipped
    assert rounds(found, QM9) == {True: 893, False: 107}
    assert int((found.lossy_flags & ALTERING_FLAGS > 0).sum()) == 107


@pytest.mark.paper
@pytest.mark.skipif(not FULL, reason="set FEDLAB_DATA to a folder with molecules/*.smi")
@pytest.mark.parametrize("name", ["qm9", "zinc"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_molecule_at_hand_that_loses_nothing_comes_back(name, split):
    vocabulary = smiles.MOLECULE_SETS[name].vocabulary
    found = smiles.load_molecules(smiles.molecule_file(name, split, Path(FULL)), vocabulary)
    assert not found.skipped
    counts = rounds(found, vocabulary)
    assert counts[False] == int((found.lossy_flags & ALTERING_FLAGS > 0).sum())


def test_canonical_order_is_the_same_however_a_molecule_is_written():
    orders = []
    for text in ("CC(O)C#N", "N#CC(C)O", "OC(C)C#N"):
        molecule = graphs.canonical_order(Chem.MolFromSmiles(text))
        orders.append(graphs.to_graph(molecule, QM9))
    for one in orders[1:]:
        assert (one.bonds == orders[0].bonds).all() and (one.atoms == orders[0].atoms).all()
    assert (graph("N#CC(C)O").atoms != orders[0].atoms).any()


# --- the validity rule and the correction ---


def test_the_rule_refuses_valences_fragments_and_nothing_at_all():
    assert graphs.to_smiles(*built("CCF", (0, 1, 1), (1, 2, 2)), QM9) is None  # fluorine with two bonds
    assert graphs.to_smiles(*built("CC"), QM9) is None
    assert graphs.to_smiles(*built(""), QM9) is None
    assert graphs.to_smiles(*built("C"), QM9) == "C"


def test_bonds_come_from_the_lower_triangle_and_only_between_atoms():
    bonds, atoms = built("CC", (0, 1, 1), (1, 5, 1))
    bonds[0, 1] = 2
    assert graphs.to_smiles(bonds, atoms, QM9) == "CC"


@pytest.mark.parametrize(
    ("elements", "bonds", "mended"),
    [
        ("NCCCC", [(0, 1, 1), (0, 2, 1), (0, 3, 1), (0, 4, 1)], "C[N+](C)(C)C"),
        ("OCC", [(0, 1, 2), (0, 2, 1)], "C=[O+]C"),
        ("CF", [(0, 1, 3)], "CF"),
        ("CCO", [(0, 1, 3), (1, 2, 2)], "C=C=O"),
        ("CCO", [(0, 1, 1)], "CC"),
        ("CO", [], "C"),
    ],
)
def test_the_correction_by_hand(elements, bonds, mended):
    one = built(elements, *bonds)
    assert graphs.to_smiles(*one, QM9) is None
    assert graphs.to_smiles(*one, QM9, corrected=True) == mended


def test_every_random_graph_with_an_atom_can_be_mended():
    rng = np.random.default_rng(0)
    for _ in range(30):
        bonds = np.tril(rng.integers(0, 4, (9, 9)), -1)
        bonds = (bonds + bonds.T + 3 * np.eye(9, dtype=int)).astype(np.uint8)
        smiles_of = graphs.to_smiles(bonds, rng.integers(0, 4, 9).astype(np.uint8), QM9, corrected=True)
        assert smiles_of and Chem.MolFromSmiles(smiles_of) is not None
    assert graphs.to_smiles(*built(""), QM9, corrected=True) is None


def test_the_correction_leaves_valid_molecules_alone():
    for text in ("c1ccccc1", "CC(=O)N", "CS(=O)(=O)N"):
        assert back(text, ZINC, corrected=True) == back(text, ZINC)


# --- batches ---


def test_one_hot_and_stacked():
    adjacency, nodes = graphs.one_hot(*graphs.stack_graphs([graph("CC#N"), graph("O")]), QM9)
    assert adjacency.shape == (2, 4, 9, 9) and nodes.shape == (2, 9, 5)
    assert (adjacency.sum(1) == 1).all() and (nodes.sum(2) == 1).all()
    assert adjacency[0, :, 1, 2].tolist() == [0, 0, 1, 0]
    assert torch.equal(adjacency, adjacency.transpose(2, 3))
    assert (adjacency[:, 3].diagonal(dim1=1, dim2=2) == 1).all()  # nothing is bound to itself
    assert nodes[1].argmax(1).tolist() == [2] + [4] * 8


def test_a_permuted_graph_is_the_same_molecule_with_empty_places_last():
    texts = ["CC(O)C#N", "c1ccncc1C", "O"]
    bonds, atoms = graphs.stack_graphs([graph(text) for text in texts])
    with seeded("permutation"):
        moved, its = graphs.permute_atoms(bonds, atoms, QM9.no_atom)
    assert not torch.equal(atoms, its)
    assert torch.equal((its == 4).sum(1), (atoms == 4).sum(1)) and (its.diff(dim=1)[its[:, :-1] == 4] == 0).all()
    assert graphs.batch_to_smiles(moved, its, QM9) == graphs.batch_to_smiles(bonds, atoms, QM9)


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("C1CC", "'C1CC' is no SMILES that RDKit can read"),
        ("not a molecule", "is no SMILES"),
        ("", "is no SMILES"),
        ("CCCCCCCCCC", "it has 10 heavy atoms, and graphs of this set hold 9"),
        ("CCCl", "element Cl is not among C, N, O, F"),
        ("[2H]C", "element H is not among"),
        ("C$C", "bond quadruple is not single, double or triple"),
        ("N->O", "bond dative is not single, double or triple"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(text, sentence):
    with pytest.raises(DataError, match=sentence):
        graph(text)
