"""Allocation of a molecule set: a public part to the server, the rest to clients, the test file to evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.data.molecules import graphs, scaffolds
from fedlab.data.molecules.scaffolds import MoleculePartition
from fedlab.data.molecules.smiles import Molecules
from fedlab.data.partitioners import MIN_EXAMPLES
from fedlab.errors import ConfigError, DataError
from fedlab.seeds import seeded

MAX_REFERENCE = 1000  # molecules of the test file that generated ones are compared with


@dataclass(frozen=True)
class MoleculeAllocation:
    """Rows of the training file by owner, and the test file.

    Attributes
    ----------
    training, reference
        Molecules of the training file, and of the test file.
    server
        Rows of the server.
    clients
        Rows that each client trains on, and those that it tests on.
    training_smiles, reference_smiles
        Canonical SMILES of the training file, for novelty, and of the reference, for distances.
    """

    training: Molecules
    reference: Molecules
    server: Tensor
    clients: tuple[tuple[Tensor, Tensor], ...]
    training_smiles: frozenset[str]
    reference_smiles: tuple[str, ...]


def allocate(
    training: Molecules,
    reference: Molecules,
    names: tuple[str, ...],
    *,
    by: MoleculePartition,
    alpha: float,
    server_fraction: float,
    test_fraction: float,
    seed: int,
    no_atom: int,
    min_examples: int = MIN_EXAMPLES,
) -> MoleculeAllocation:
    """Allocate the molecules of a training file to the server and to clients of these names.

    Parameters
    ----------
    training, reference
        Molecules of the training file, and of the test file.
    names
        Names of the clients.
    by, alpha, no_atom, min_examples
        As in :func:`fedlab.data.molecules.scaffolds.partition_molecules`; a client needs two, one to test on.
    server_fraction, test_fraction
        Fraction of the file that is the server's, and of each client's molecules that it tests on.

    Raises
    ------
    ConfigError
        When an owner gets too few.
    """
    with seeded(seed, "public part"):
        order = torch.randperm(len(training))
    cut = round(len(training) * server_fraction)
    if cut < MIN_EXAMPLES:
        raise ConfigError(
            f"the server's public part would be {cut} of {len(training):,} molecules, at least {MIN_EXAMPLES} are "
            "needed; raise molecules.server_fraction or data.max_examples, or use a larger file"
        )
    server, private = order[:cut].sort().values, order[cut:].sort().values
    private_part, least = training.select(private.tolist()), max(2, min_examples)
    parts = scaffolds.partition_molecules(private_part, len(names), by, alpha, seed, no_atom, least)
    clients = tuple(
        scaffolds.train_test_rows(private[rows], test_fraction, seed, name)
        for rows, name in zip(parts, names, strict=True)
    )
    compared = [smiles for smiles in reference.decoded_smiles if smiles][:MAX_REFERENCE]
    return MoleculeAllocation(training, reference, server, clients, frozenset(training.decoded_smiles), tuple(compared))


def drop_lossy(molecules: Molecules) -> Molecules:
    """Return the molecules whose graphs decode to the same molecule.

    Raises
    ------
    DataError
        When none is left.
    """
    rows = (molecules.lossy_flags & graphs.ALTERING_FLAGS == 0).nonzero()[:, 0].tolist()
    if not rows:
        raise DataError(
            "no molecule is left without charges, unpaired electrons and isotopes; set molecules.lossy=keep"
        )
    return molecules.select(rows)
