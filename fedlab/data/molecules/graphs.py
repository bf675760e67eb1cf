"""Molecules as graphs of fixed size, and back: RDKit on one side, small integers on the other.

A graph of at most N heavy atoms is two tables: ``bonds`` (N, N), symmetric, with 0 single, 1 double, 2 triple, 3 no
bond, and ``atoms`` (N,) with the number of the element, or that of "no atom" for the places after the last atom.
:func:`one_hot` turns a batch into the input of models: ``adjacency`` (batch, 4, N, N) and ``nodes`` (batch, N, F), the
last channel of each meaning "none". Bonds are kekulized and hydrogens are implied by valence.

**What a graph does not represent** is flagged for each molecule (:data:`LOSSY_FLAGS`): charges, unpaired electrons,
isotopes and stereochemistry. A molecule with a charge or an unpaired electron is represented by the neutral one that
hydrogens complete. Several fragments are represented, but flagged, since the validity rule refuses them in samples.

**Canonical form**: RDKit's canonical SMILES without stereochemistry (:func:`canonical_smiles`). A molecule that loses
nothing but stereochemistry, or is in fragments, is decoded to the same string.

**Validity rule** (:func:`to_smiles`): a graph is a molecule if RDKit's sanitization accepts it (valences above all, no
charges are given) and it is one connected piece of at least one atom. This is the rule of GraphNVP's public code. With
``corrected`` (:func:`correct_valences`) it is repaired first: N, O and S with one bond too many get a charge of +1,
other atoms with too many bonds lose the order of their highest bond, one by one, and the largest fragment is kept; then
every graph with an atom is a molecule.

**Source**: Madhawa et al., GraphNVP, 2019, section 4; the correction is after Zang and Wang, MoFlow, KDD 2020, section
3.4. **Departures**: (1) the correction gives a charge only where it heals the atom at once, and else lowers a bond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, RDLogger
from torch import Tensor
from torch.nn.functional import one_hot as torch_one_hot

from fedlab.data.pinned import send
from fedlab.errors import DataError

RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]  # what RDKit refuses is said in sentences of our own

BOND_TYPES = (Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
NO_BOND = len(BOND_TYPES)
CHANNELS = NO_BOND + 1
LOSSY_FLAGS: Mapping[str, int] = {"charge": 1, "radical": 2, "isotope": 4, "stereo": 8, "fragments": 16}  # name -> bit
ALTERING_FLAGS = LOSSY_FLAGS["charge"] | LOSSY_FLAGS["radical"] | LOSSY_FLAGS["isotope"]  # another molecule comes back
CHARGEABLE = {"N": 4, "O": 3, "S": 3}  # element -> valence at which a charge of +1 heals it


@dataclass(frozen=True)
class GraphVocabulary:
    """Largest number of atoms ``size`` (N) and the elements (F - 1) that the graphs of a set can hold."""

    size: int
    elements: tuple[str, ...]

    @property
    def no_atom(self) -> int:
        """Return the number of the channel "no atom"; F is one more."""
        return len(self.elements)


QM9 = GraphVocabulary(9, ("C", "N", "O", "F"))
ZINC = GraphVocabulary(38, ("C", "N", "O", "F", "P", "S", "Cl", "Br", "I"))


@dataclass(frozen=True)
class Graph:
    """One molecule: ``bonds`` (N, N) and ``atoms`` (N,) uint8, and bits of :data:`LOSSY_FLAGS`."""

    bonds: NDArray[np.uint8]
    atoms: NDArray[np.uint8]
    lossy_flags: int


def parse_smiles(smiles: str, vocabulary: GraphVocabulary) -> tuple[Chem.Mol, Graph]:
    """Return a molecule and its graph, atoms in the order of the SMILES.

    Raises
    ------
    DataError
        When it cannot be parsed, or has too many atoms, or an element or bond that the vocabulary lacks.
    """
    molecule = Chem.MolFromSmiles(smiles) if smiles.strip() else None
    if molecule is None or molecule.GetNumAtoms() == 0:
        raise DataError(f"{smiles!r} is no SMILES that RDKit can read")
    return molecule, to_graph(molecule, vocabulary)


def to_graph(molecule: Chem.Mol, vocabulary: GraphVocabulary) -> Graph:
    """Return the graph of a sanitized molecule.

    Raises
    ------
    DataError
        When it has too many atoms, or an element or bond that the vocabulary lacks.
    """
    count = molecule.GetNumAtoms()
    if count > vocabulary.size:
        raise DataError(f"it has {count} heavy atoms, and graphs of this set hold {vocabulary.size}")
    atoms = np.full(vocabulary.size, vocabulary.no_atom, np.uint8)
    lossy_flags = 0
    for position, atom in enumerate(molecule.GetAtoms()):
        symbol = atom.GetSymbol()
        if symbol not in vocabulary.elements:
            raise DataError(f"element {symbol} is not among {', '.join(vocabulary.elements)}")
        atoms[position] = vocabulary.elements.index(symbol)
        lossy_flags |= LOSSY_FLAGS["charge"] * bool(atom.GetFormalCharge()) | LOSSY_FLAGS["isotope"] * bool(
            atom.GetIsotope()
        )
        lossy_flags |= LOSSY_FLAGS["radical"] * bool(atom.GetNumRadicalElectrons())
        lossy_flags |= LOSSY_FLAGS["stereo"] * (atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED)
    kekulized = Chem.Mol(molecule)
    Chem.Kekulize(kekulized, clearAromaticFlags=True)
    bonds = np.full((vocabulary.size, vocabulary.size), NO_BOND, np.uint8)
    for bond in kekulized.GetBonds():
        if bond.GetBondType() not in BOND_TYPES:
            raise DataError(f"bond {bond.GetBondType().name.lower()} is not single, double or triple")
        i, j, order = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), BOND_TYPES.index(bond.GetBondType())
        bonds[i, j] = bonds[j, i] = order
        lossy_flags |= LOSSY_FLAGS["stereo"] * (bond.GetStereo() != Chem.BondStereo.STEREONONE)
    lossy_flags |= LOSSY_FLAGS["fragments"] * (len(Chem.GetMolFrags(molecule)) > 1)
    return Graph(bonds, atoms, int(lossy_flags))


def canonical_smiles(molecule: Chem.Mol) -> str:
    """Return the canonical SMILES without stereochemistry."""
    return str(Chem.MolToSmiles(molecule, isomericSmiles=False))


def canonical_order(molecule: Chem.Mol) -> Chem.Mol:
    """Return the same molecule with atoms in the order of its canonical SMILES."""
    canonical_smiles(molecule)
    return Chem.RenumberAtoms(molecule, list(molecule.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"]))


def one_hot(bonds: Tensor, atoms: Tensor, vocabulary: GraphVocabulary) -> tuple[Tensor, Tensor]:
    """Return graphs one-hot, as models read them.

    Parameters
    ----------
    bonds, atoms
        (batch, N, N) and (batch, N), integers.

    Returns
    -------
    Tensor, Tensor
        ``adjacency`` (batch, 4, N, N) and ``nodes`` (batch, N, F), float32, one 1 in each row of channels.
    """
    adjacency = torch_one_hot(bonds.long(), CHANNELS).movedim(-1, 1).float()
    return adjacency, torch_one_hot(atoms.long(), vocabulary.no_atom + 1).float()


def permute_atoms(bonds: Tensor, atoms: Tensor, no_atom: int) -> tuple[Tensor, Tensor]:
    """Return each graph with its atoms in a random order from torch's stream, empty places still at the end.

    Shapes of ``bonds`` and ``atoms`` are (batch, N, N) and (batch, N).
    """
    keys = send(torch.rand(atoms.shape), atoms.device) + (atoms == no_atom)
    order = keys.argsort(dim=1)  # (batch, N)
    rows = bonds.gather(1, order[:, :, None].expand_as(bonds))
    return rows.gather(2, order[:, None, :].expand_as(bonds)), atoms.gather(1, order)


def to_molecule(bonds: NDArray[np.uint8], atoms: NDArray[np.uint8], vocabulary: GraphVocabulary) -> Chem.RWMol:
    """Return the molecule of one graph (N, N), (N,), not sanitized; bonds come from the lower triangle."""
    molecule, place = Chem.RWMol(), {}
    for position in np.flatnonzero(atoms != vocabulary.no_atom).tolist():
        place[position] = molecule.AddAtom(Chem.Atom(vocabulary.elements[atoms[position]]))
    for i, j in zip(*np.nonzero(np.tril(bonds != NO_BOND, -1)), strict=True):
        if i in place and j in place:
            molecule.AddBond(place[i], place[j], BOND_TYPES[bonds[i, j]])
    return molecule


def to_smiles(
    bonds: NDArray[np.uint8], atoms: NDArray[np.uint8], vocabulary: GraphVocabulary, *, corrected: bool = False
) -> str | None:
    """Return the canonical SMILES of one graph (N, N), (N,), or None where the validity rule refuses it."""
    molecule = to_molecule(bonds, atoms, vocabulary)
    return validated_smiles(correct_valences(molecule) if corrected else molecule)


def validated_smiles(molecule: Chem.RWMol) -> str | None:
    """Return the canonical SMILES of a molecule that passes the validity rule, else None; the molecule is sanitized."""
    if not molecule.GetNumAtoms() or Chem.SanitizeMol(molecule, catchErrors=True) != Chem.SANITIZE_NONE:
        return None
    smiles = canonical_smiles(molecule)
    return None if "." in smiles else smiles


def correct_valences(molecule: Chem.RWMol) -> Chem.RWMol:
    """Return a copy repaired until every valence holds, reduced to its largest fragment (the first of equal ones)."""
    mended = Chem.RWMol(molecule)
    while problem := next(iter(Chem.DetectChemistryProblems(mended)), None):
        atom = mended.GetAtomWithIdx(problem.GetAtomIdx())
        bonds = sorted(atom.GetBonds(), key=lambda bond: (-bond.GetBondTypeAsDouble(), bond.GetIdx()))
        order = int(sum(bond.GetBondTypeAsDouble() for bond in bonds))
        if CHARGEABLE.get(atom.GetSymbol()) == order and not atom.GetFormalCharge():
            atom.SetFormalCharge(1)
        else:
            _lower(mended, bonds[0])
    fragments = Chem.GetMolFrags(mended, asMols=True, sanitizeFrags=False)
    return Chem.RWMol(max(fragments, key=lambda part: part.GetNumAtoms())) if fragments else mended


def _lower(molecule: Chem.RWMol, bond: Chem.Bond) -> None:
    order = BOND_TYPES.index(bond.GetBondType())
    if order:
        bond.SetBondType(BOND_TYPES[order - 1])
    else:
        molecule.RemoveBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())


def batch_to_smiles(
    bonds: Tensor, atoms: Tensor, vocabulary: GraphVocabulary, *, corrected: bool = False
) -> list[str | None]:
    """Apply :func:`to_smiles` to a batch of graphs (batch, N, N), (batch, N)."""
    pairs = zip(bonds.cpu().numpy().astype(np.uint8), atoms.cpu().numpy().astype(np.uint8), strict=True)
    return [to_smiles(one, its, vocabulary, corrected=corrected) for one, its in pairs]


def flag_names(lossy_flags: int) -> list[str]:
    """Return the names of the bits of :data:`LOSSY_FLAGS` that are set."""
    return [name for name, bit in LOSSY_FLAGS.items() if lossy_flags & bit]


def stack_graphs(graphs: Sequence[Graph]) -> tuple[Tensor, Tensor]:
    """Return bonds (molecules, N, N) and atoms (molecules, N), uint8."""
    return (
        torch.from_numpy(np.stack([graph.bonds for graph in graphs])),
        torch.from_numpy(np.stack([graph.atoms for graph in graphs])),
    )
