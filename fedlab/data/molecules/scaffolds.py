"""Molecules partitioned over clients: by scaffold, by size, by clusters of scaffolds, or at random.

**Source**: Bemis and Murcko, J. Med. Chem. 1996, for scaffolds; FedChem (Zhu et al., Patterns 2022) splits clusters of
scaffolds by a draw from a Dirichlet distribution (Hsu et al. 2019). **Departures**: (1) a cluster here is one generic
scaffold, all atoms carbon and all bonds single, which is a shape of rings and linkers; the rarest shapes are one
cluster together; (2) in ``scaffold`` the largest groups are assigned first, each to the client with the fewest
molecules at that time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem.Scaffolds.MurckoScaffold import MakeScaffoldGeneric
from torch import Tensor

from fedlab.data.molecules import graphs
from fedlab.data.molecules.smiles import Molecules
from fedlab.data.partitioners import MIN_EXAMPLES, partition_indices
from fedlab.errors import ConfigError
from fedlab.seeds import seed_of

MAX_CLUSTERS = 30  # clusters of scaffolds with a number of their own; all others are one more

MoleculePartition = Literal["iid", "scaffold", "size", "dirichlet"]


def partition_molecules(
    molecules: Molecules,
    clients: int,
    by: MoleculePartition,
    alpha: float,
    seed: int,
    no_atom: int,
    min_examples: int = MIN_EXAMPLES,
) -> list[Tensor]:
    """Return the row numbers of each client: disjoint, together all, each sorted.

    Parameters
    ----------
    clients
        Number of clients.
    by
        ``iid``: at random; ``scaffold``: every Bemis-Murcko scaffold belongs to one client; ``size``: client 0 has the
        smallest molecules; ``dirichlet``: each cluster of scaffolds is split by a draw from Dirichlet(alpha).
    alpha
        Concentration of the Dirichlet draws, above 0.
    seed
        Seed of the partition.
    no_atom
        The number that stands for no atom.
    min_examples
        Fewest molecules of a client.

    Raises
    ------
    ConfigError
        When a client would get fewer.
    """
    if by in ("iid", "dirichlet"):
        return partition_indices(by, scaffold_clusters(molecules.scaffolds), clients, alpha, seed, min_examples)
    rows = _by_scaffold(molecules.scaffolds, clients) if by == "scaffold" else _by_size(molecules, clients, no_atom)
    for client, part in enumerate(rows):
        if len(part) < min_examples:
            raise ConfigError(
                f"client {client} of {clients} would hold {len(part)} of {len(molecules):,} molecules shared "
                f"out by {by}; at least {min_examples} are needed: ask for fewer clients, lower data.min_examples, or "
                "take another data.partition"
            )
    return rows


def _by_scaffold(scaffolds: Sequence[str], clients: int) -> list[Tensor]:
    groups: dict[str, list[int]] = {}
    for row, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(row)
    hands: list[list[int]] = [[] for _ in range(clients)]
    for group in sorted(groups.values(), key=lambda rows: (-len(rows), rows[0])):
        min(hands, key=len).extend(group)
    return [torch.tensor(sorted(hand), dtype=torch.long) for hand in hands]


def _by_size(molecules: Molecules, clients: int, no_atom: int) -> list[Tensor]:
    sizes = (molecules.atoms != no_atom).sum(1)
    order = np.argsort(sizes.numpy(), kind="stable")  # of one size in the order of the file
    return [torch.from_numpy(np.sort(part)) for part in np.array_split(order, clients)]


@lru_cache(maxsize=8)
def scaffold_clusters(scaffolds: tuple[str, ...]) -> Tensor:
    """Return the cluster of each molecule (molecules,): 0 is the most frequent shape of scaffold."""
    shape_of = {scaffold: _shape(scaffold) for scaffold in set(scaffolds)}
    counts = Counter(shape_of[scaffold] for scaffold in scaffolds)
    ranked = sorted(counts, key=lambda shape: (-counts[shape], shape))
    number = {shape: min(rank, MAX_CLUSTERS) for rank, shape in enumerate(ranked)}
    return torch.tensor([number[shape_of[scaffold]] for scaffold in scaffolds])


def _shape(scaffold: str) -> str:
    molecule = Chem.MolFromSmiles(scaffold)
    if molecule is None:  # RDKit may refuse a scaffold by itself
        return scaffold
    return graphs.canonical_smiles(MakeScaffoldGeneric(molecule))  # type: ignore[no-untyped-call]


def train_test_rows(rows: Tensor, fraction: float, seed: int, owner: str) -> tuple[Tensor, Tensor]:
    """Split an owner's rows (molecules,) into those to train on and those to test on, at least one each.

    The split is a function of the seed and of the owner's name.
    """
    generator = np.random.default_rng(seed_of(seed, "held out", owner))
    order = generator.permutation(len(rows))
    cut = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    return rows[np.sort(order[cut:])], rows[np.sort(order[:cut])]
