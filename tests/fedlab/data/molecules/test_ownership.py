"""Who holds what: everybody something, nobody the same, and too little is refused."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.molecules import graphs, ownership, smiles
from fedlab.errors import ConfigError, DataError

NAMES = ("a", "b", "c")
USUAL = {
    "by": "iid",
    "alpha": 1.0,
    "server_fraction": 0.1,
    "test_fraction": 0.25,
    "seed": 3,
    "no_atom": graphs.QM9.no_atom,
}


@pytest.fixture(scope="module")
def files():
    return [
        smiles.load_molecules(smiles.molecule_file("qm9", split, None), graphs.QM9, 200) for split in ("train", "test")
    ]


@pytest.mark.parametrize("by", ["iid", "scaffold", "size", "dirichlet"])
def test_every_molecule_has_one_owner(files, by):
    found = ownership.allocate(*files, NAMES, **{**USUAL, "by": by})
    rows = [found.server, *(part for client in found.clients for part in client)]
    assert sorted(torch.cat(rows).tolist()) == list(range(len(files[0])))
    assert len(found.server) == round(0.1 * len(files[0])) and len(found.clients) == 3
    assert found.training_smiles == set(files[0].decoded_smiles)
    assert found.reference_smiles == tuple(meaning for meaning in files[1].decoded_smiles if meaning)


def test_another_seed_deals_otherwise_and_the_same_the_same(files):
    one, same = (ownership.allocate(*files, NAMES, **USUAL) for _ in range(2))
    other = ownership.allocate(*files, NAMES, **{**USUAL, "seed": 4})
    assert torch.equal(one.server, same.server) and not torch.equal(one.server, other.server)


def test_too_small_a_public_part_is_refused(files):
    with pytest.raises(ConfigError, match="the server's public part would be 0 of 200 molecules"):
        ownership.allocate(*files, NAMES, **{**USUAL, "server_fraction": 0.001})


def test_only_molecules_that_lose_nothing_are_kept(files):
    kept = ownership.drop_lossy(files[0])
    assert 0 < len(kept) < len(files[0]) and not (kept.lossy_flags & graphs.ALTERING_FLAGS).any()
    lossy = files[0].select(
        [row for row, loss in enumerate(files[0].lossy_flags.tolist()) if loss & graphs.ALTERING_FLAGS]
    )
    with pytest.raises(DataError, match="set molecules.lossy=keep"):
        ownership.drop_lossy(lossy)
