"""Metrics of generated molecules: validity, uniqueness, novelty, distances to the reference set.

**Metrics**, all over ``samples`` generated graphs, of which ``valid`` are molecules:

- ``validity``: valid / samples; the rule is that of ``fedlab.data.molecules.graphs``, without the correction step.
- ``uniqueness``: different canonical SMILES / valid; ``novelty``: fraction of the different ones that the training file
  does not have; ``valid_unique_novel``: the product, which is novel different ones / samples.
- ``wasserstein_NAME``: 1-Wasserstein distance to the reference of ``qed`` (0 to 1), ``logp``, ``weight`` (Da) and
  ``ring_sizes`` (atoms, of all rings together).
- ``distance_atoms``, ``distance_bonds``: total variation between histograms of elements and of bonds (kekulized).
- ``frechet``: Frechet distance of :data:`DESCRIPTORS`, each scaled by the reference's mean and standard deviation, to
  the reference. It grows as samples get fewer, so compare at equal numbers only.

Metrics that cannot be measured are left out: distances with fewer than two valid molecules, ring sizes without rings.

**Source**: validity, uniqueness, novelty as in De Cao and Kipf, MolGAN, 2018, and the public code of GraphNVP; QED:
Bickerton et al. 2012; logP: Wildman and Crippen 1999. **Departures**: (1) ``frechet`` is taken on RDKit's descriptors:
the ChemNet activations of FCD need weights that do not ship; it is no FCD; (2) novelty is a fraction of the different
ones, as in GraphNVP, where MolGAN counts all valid ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import QED, Crippen, Descriptors, rdMolDescriptors

from fedlab.evaluation.distances import Floats, frechet, total_variation

PROPERTIES: Mapping[str, Callable[[Chem.Mol], float]] = {
    "qed": QED.qed,
    "logp": Crippen.MolLogP,  # type: ignore[attr-defined]
    "weight": Descriptors.MolWt,  # type: ignore[attr-defined]
}
DESCRIPTORS: Mapping[str, Callable[[Chem.Mol], float]] = {
    **PROPERTIES,
    "polar_surface": rdMolDescriptors.CalcTPSA,
    "surface": rdMolDescriptors.CalcLabuteASA,
    "saturated_carbons": rdMolDescriptors.CalcFractionCSP3,
    "heteroatoms": rdMolDescriptors.CalcNumHeteroatoms,
    "heavy_atoms": Chem.Mol.GetNumAtoms,
    "donors": rdMolDescriptors.CalcNumHBD,
    "acceptors": rdMolDescriptors.CalcNumHBA,
    "rotatable_bonds": rdMolDescriptors.CalcNumRotatableBonds,
    "rings": rdMolDescriptors.CalcNumRings,
    "aromatic_rings": rdMolDescriptors.CalcNumAromaticRings,
}


@dataclass(frozen=True)
class Properties:
    """Properties of a set of molecules: descriptors (molecules, descriptors), all ring sizes, elements and bonds."""

    descriptors: Floats
    ring_sizes: tuple[int, ...]
    atoms: Mapping[str, int]
    bonds: Mapping[str, int]


def validity_metrics(generated: Sequence[str | None], training: Collection[str]) -> dict[str, float]:
    """Return validity, uniqueness, novelty and their product.

    Parameters
    ----------
    generated
        Canonical SMILES of each generated graph, None where it is no molecule.
    training
        Canonical SMILES of every training molecule.
    """
    valid = [smiles for smiles in generated if smiles]
    different = set(valid)
    novel = different.difference(training)
    found = {"samples": float(len(generated)), "valid": float(len(valid))}
    if generated:
        found["validity"] = len(valid) / len(generated)
        found["valid_unique_novel"] = len(novel) / len(generated)
    if valid:
        found["uniqueness"] = len(different) / len(valid)
        found["novelty"] = len(novel) / len(different)
    return found


def distribution_metrics(valid: Sequence[str], reference: Sequence[str]) -> dict[str, float]:
    """Return distances between valid generated molecules and real ones, both as canonical SMILES."""
    if min(len(valid), len(reference)) < 2:
        return {}
    from scipy.stats import wasserstein_distance  # slow to import, and only scores need it

    generated, real = properties(tuple(valid)), properties(tuple(reference))
    mean, deviation = real.descriptors.mean(0), real.descriptors.std(0)
    scale = np.where(deviation > 0, deviation, 1.0)
    found = {
        "frechet": frechet((generated.descriptors - mean) / scale, (real.descriptors - mean) / scale),
        "distance_atoms": total_variation(generated.atoms, real.atoms),
    }
    if generated.bonds and real.bonds:
        found["distance_bonds"] = total_variation(generated.bonds, real.bonds)
    names = list(DESCRIPTORS)
    for name in PROPERTIES:
        column = names.index(name)
        found[f"wasserstein_{name}"] = float(
            wasserstein_distance(generated.descriptors[:, column], real.descriptors[:, column])
        )
    if generated.ring_sizes and real.ring_sizes:
        found["wasserstein_ring_sizes"] = float(wasserstein_distance(generated.ring_sizes, real.ring_sizes))
    return found


@lru_cache(maxsize=8)
def properties(smiles: tuple[str, ...]) -> Properties:
    """Return the properties of molecules that RDKit accepts."""
    rows, rings, atoms, bonds = [], list[int](), Counter[str](), Counter[str]()
    for text in smiles:
        molecule = Chem.MolFromSmiles(text)
        rows.append([float(of(molecule)) for of in DESCRIPTORS.values()])
        rings.extend(len(ring) for ring in molecule.GetRingInfo().AtomRings())
        atoms.update(atom.GetSymbol() for atom in molecule.GetAtoms())
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        bonds.update(bond.GetBondType().name for bond in molecule.GetBonds())
    return Properties(np.array(rows), tuple(rings), dict(atoms), dict(bonds))
