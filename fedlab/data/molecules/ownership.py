"""Who holds what of a set of molecules: the server a public part, clients the rest, nobody the test file."""

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

MAX_REFERENCE = 1000  # molecules of the test file that drawn ones are compared with


@dataclass(frozen=True)
class MoleculeAllocation:
    """Who holds what of the training file, and the test file.

    Attributes
    ----------
    public
        Rows of the server.
    clients
        Rows that each client trains on, and those that it tests on.
    known, compared
        Canonical SMILES of the training file, for novelty, and of the reference, for distances.
    """

    training: Molecules
    reference: Molecules
    public: Tensor
    clients: tuple[tuple[Tensor, Tensor], ...]
    known: frozenset[str]
    compared: tuple[str, ...]


def allocate(
    training: Molecules,
    reference: Molecules,
    names: tuple[str, ...],
    *,
    by: MoleculePartition,
    alpha: float,
    public: float,
    held_out: float,
    seed: int,
    no_atom: int,
) -> MoleculeAllocation:
    """Molecules of a training file dealt to the server and to clients of these names.

    Parameters
    ----------
    by, alpha, no_atom
        As in :func:`fedlab.data.molecules.scaffolds.partition_molecules`.
    public, held_out
        Share of the file that is the server's, and of each client's molecules that it tests on.

    Raises
    ------
    ConfigError
        When an owner gets too few.
    """
    with seeded(seed, "public part"):
        order = torch.randperm(len(training))
    cut = round(len(training) * public)
    if cut < MIN_EXAMPLES:
        raise ConfigError(
            f"the server's public part would be {cut} of {len(training):,} molecules, at least {MIN_EXAMPLES} are "
            "needed; raise molecules.server_fraction or data.max_examples, or use a larger file"
        )
    of_server, private = order[:cut].sort().values, order[cut:].sort().values
    parts = scaffolds.partition_molecules(training.select(private.tolist()), len(names), by, alpha, seed, no_atom)
    clients = tuple(
        scaffolds.train_test_rows(private[rows], held_out, seed, name) for rows, name in zip(parts, names, strict=True)
    )
    meant = [meaning for meaning in reference.decoded_smiles if meaning][:MAX_REFERENCE]
    return MoleculeAllocation(training, reference, of_server, clients, frozenset(training.decoded_smiles), tuple(meant))


def drop_lossy(molecules: Molecules) -> Molecules:
    """Those whose graph gives the same molecule back."""
    kept = (molecules.lossy_flags & graphs.ALTERING_FLAGS == 0).nonzero()[:, 0].tolist()
    if not kept:
        raise DataError(
            "no molecule is left without charges, unpaired electrons and isotopes; set molecules.lossy=keep"
        )
    return molecules.select(kept)
