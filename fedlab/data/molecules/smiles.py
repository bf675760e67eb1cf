"""SMILES files parsed into graphs: line by line, in parallel, once.

A file has one molecule a line, or is a table with a column of SMILES, see :mod:`fedlab.data.molecules.smiles_file`. A
line that is no molecule of the set does not end the run: it is skipped, recorded with its number and the reason
(:class:`SkippedLine`) in a file, and counted in a warning. A file without a usable line is an error.

Long files are parsed by all cores and cached in the user's cache folder (``$XDG_CACHE_HOME/fedlab/molecules``), under a
name made from their content, the vocabulary and RDKit's version; where nothing can be written they are parsed again.

The small sets inside the package are read when no folder of full sets is given: 5,000 molecules of QM9 to train on and
1,000 of its test file. ZINC's file does not ship.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import joblib
import rdkit
import torch
from rdkit import Chem
from rdkit.Chem.Scaffolds.MurckoScaffold import GetScaffoldForMol
from torch import Tensor

from fedlab.data.cache import cache_folder, cache_key, try_write
from fedlab.data.digits.datasets import EMBEDDED, note_embedded, unset_root
from fedlab.data.molecules import cache, graphs
from fedlab.data.molecules.graphs import Graph, GraphVocabulary
from fedlab.data.molecules.smiles_file import read_smiles_file
from fedlab.data.sources import PACKAGE, DataSource
from fedlab.errors import DataError, FedlabWarning, suggest

FORMAT = "1"  # of the cache
CHUNK_LINES = 2000  # lines a task
PARALLEL_LINES = 10_000  # lines from which several cores and a cache are worth it
MAX_LISTED = 3  # refused lines in a message
TEXTS, TENSORS = (
    ("smiles", "decoded_smiles", "scaffolds"),
    ("bonds", "atoms", "lossy_flags"),
)  # what a cache holds of molecules

AtomOrder = Literal["file", "canonical"]


class SkippedLinesWarning(FedlabWarning):
    """Warning that lines of a SMILES file were not used."""


class SmilesColumnWarning(FedlabWarning):
    """Warning that the molecules of a table are not in its first column."""


@dataclass(frozen=True)
class SkippedLine:
    """A line that was not used: its number from 1, its SMILES, and the reason."""

    line: int
    smiles: str
    reason: str


@dataclass(frozen=True)
class Molecules:
    """Molecules of one file, in its order; shared, read-only.

    Attributes
    ----------
    smiles
        Canonical SMILES of each line, without stereochemistry.
    decoded_smiles
        Canonical SMILES of each graph: equal to ``smiles`` where nothing is lost, "" where the graph is no molecule.
    bonds, atoms
        (molecules, N, N) and (molecules, N) uint8, see :mod:`fedlab.data.molecules.graphs`.
    lossy_flags
        What each graph does not represent, bits of ``graphs.LOSSY_FLAGS`` (molecules,) uint8.
    scaffolds
        Bemis-Murcko scaffold of each; "" for one without a ring.
    skipped
        Lines that were not used.
    """

    smiles: tuple[str, ...]
    decoded_smiles: tuple[str, ...]
    bonds: Tensor
    atoms: Tensor
    lossy_flags: Tensor
    scaffolds: tuple[str, ...]
    skipped: tuple[SkippedLine, ...] = ()

    def __len__(self) -> int:
        return len(self.smiles)

    def select(self, rows: Sequence[int]) -> Molecules:
        """Return the molecules of these rows."""
        some = torch.as_tensor(rows, dtype=torch.long)
        texts = [tuple(column[row] for row in rows) for column in (self.smiles, self.decoded_smiles, self.scaffolds)]
        return Molecules(texts[0], texts[1], self.bonds[some], self.atoms[some], self.lossy_flags[some], texts[2])


@dataclass(frozen=True)
class MoleculeSet:
    """The vocabulary of a set; ``embedded`` is true when a part of it ships inside the package."""

    vocabulary: GraphVocabulary
    embedded: bool


MOLECULE_SETS = {"qm9": MoleculeSet(graphs.QM9, True), "zinc": MoleculeSet(graphs.ZINC, False)}
FILES = {
    ("qm9", "train"): "qm9_train.smi",
    ("qm9", "test"): "qm9_test.smi",
    ("zinc", "train"): "zinc_subset_train.smi",
    ("zinc", "test"): "zinc_subset_test.smi",
}


def molecule_file(name: str, split: str, root: Path | None) -> Path:
    """Return the path of a set's file.

    Raises
    ------
    DataError
        When there is no such set or split, or its file is missing.
    """
    if name not in MOLECULE_SETS:
        raise DataError(f"no set of molecules {name!r}; {suggest(name, MOLECULE_SETS)}")
    if (name, split) not in FILES:
        raise DataError(f"no split {split!r}; {suggest(split, [of for set_, of in FILES if set_ == name])}")
    file = FILES[name, split]
    if root is None and MOLECULE_SETS[name].embedded:
        return EMBEDDED / file
    if root is not None and root.is_dir() and MOLECULE_SETS[name].embedded and not (root / "molecules").is_dir():
        note_embedded(name, root)
        return EMBEDDED / file
    path = (root or Path("FOLDER")) / "molecules" / file
    if root is None or not path.is_file():
        unset = f", or {unset_root(root)} to use the part that ships" if root and MOLECULE_SETS[name].embedded else ""
        raise DataError(f"expected {path}; put the set there and name FOLDER in data.root or FEDLAB_DATA{unset}")
    return path


def molecule_source(name: str, root: Path | None, examples: int) -> DataSource:
    """Return where the training file of a set is, of which a run takes so many molecules.

    Raises
    ------
    DataError
        As :func:`molecule_file`.
    """
    path = molecule_file(name, "train", root)
    if path.parent != EMBEDDED:
        return DataSource(name, examples, str(path.parent))
    both = " and ".join(FILES[name, split] for split in ("train", "test"))
    return DataSource(name, examples, PACKAGE, f"put {both} into FOLDER/molecules")


@lru_cache(maxsize=8)
def load_molecules(path: Path, vocabulary: GraphVocabulary, limit: int = 0, order: AtomOrder = "file") -> Molecules:
    """Return the molecules of one file, read once a process.

    Parameters
    ----------
    path, vocabulary
        The SMILES file, and what its graphs can hold.
    limit
        Largest number of lines to read; 0 reads all.
    order
        Order of the atoms: as in the file's SMILES, or as in the canonical ones.

    Raises
    ------
    DataError
        When the file cannot be read, or no line of it is a molecule of the set.

    Warns
    -----
    SkippedLinesWarning
        When some lines are no molecules of the set.
    SmilesColumnWarning
        When the molecules are not in the first column of several.
    """
    content = read_smiles_file(path)
    lines = content.lines[: limit or None]
    if content.column:
        warnings.warn(f"the molecules of {path} are taken from {content.column}", SmilesColumnWarning, stacklevel=2)
    key = _key(lines, vocabulary, order)
    kept = cache_folder("molecules") / f"{path.stem}-{key}.npz"
    found = _recall(kept) if len(lines) >= PARALLEL_LINES else None
    if found is None:
        found = _parse(lines, vocabulary, order)
        if not found.smiles:
            raise DataError(f"{path} has no molecule that could be used: {_some(found.skipped) or 'it is empty'}")
        if len(lines) >= PARALLEL_LINES:
            _keep(kept, found)
    if found.skipped:
        _set_aside(path, key, len(lines), found.skipped)
    return found


def _parse(lines: Sequence[tuple[int, str]], vocabulary: GraphVocabulary, order: AtomOrder) -> Molecules:
    chunks = [lines[start : start + CHUNK_LINES] for start in range(0, len(lines), CHUNK_LINES)]
    jobs = -1 if len(lines) >= PARALLEL_LINES else 1
    parts = joblib.Parallel(n_jobs=jobs)(joblib.delayed(parse_lines)(chunk, vocabulary, order) for chunk in chunks)
    if not any(part.smiles for part in parts):
        empty = torch.zeros(0, dtype=torch.uint8)
        return Molecules((), (), empty, empty, empty, (), tuple(one for part in parts for one in part.skipped))
    full = [part for part in parts if part.smiles]
    return Molecules(
        tuple(one for part in full for one in part.smiles),
        tuple(one for part in full for one in part.decoded_smiles),
        torch.cat([part.bonds for part in full]),
        torch.cat([part.atoms for part in full]),
        torch.cat([part.lossy_flags for part in full]),
        tuple(one for part in full for one in part.scaffolds),
        tuple(one for part in parts for one in part.skipped),
    )


def parse_lines(lines: Sequence[tuple[int, str]], vocabulary: GraphVocabulary, order: AtomOrder) -> Molecules:
    """Return the molecules of numbered SMILES, one after another: the task of one process."""
    found: list[Graph] = []
    smiles, decoded_smiles, scaffolds, skipped = [], [], [], []
    for number, text in lines:
        try:
            molecule, graph = graphs.parse_smiles(text, vocabulary)
        except DataError as error:
            skipped.append(SkippedLine(number, text, str(error)))
            continue
        if order == "canonical":
            graph = graphs.to_graph(graphs.canonical_order(molecule), vocabulary)
        found.append(graph)
        smiles.append(graphs.canonical_smiles(molecule))
        decoded_smiles.append(
            _decoded_smiles(graph, vocabulary) if graph.lossy_flags & graphs.ALTERING_FLAGS else smiles[-1]
        )
        scaffolds.append(graphs.canonical_smiles(murcko_scaffold(molecule)))
    empty = torch.zeros(0, dtype=torch.uint8)
    bonds, atoms = graphs.stack_graphs(found) if found else (empty, empty)
    lossy_flags = torch.tensor([graph.lossy_flags for graph in found], dtype=torch.uint8)
    return Molecules(tuple(smiles), tuple(decoded_smiles), bonds, atoms, lossy_flags, tuple(scaffolds), tuple(skipped))


def murcko_scaffold(molecule: Chem.Mol) -> Chem.Mol:
    """Return the Bemis-Murcko scaffold: rings and their linkers."""
    return GetScaffoldForMol(molecule)  # type: ignore[no-untyped-call,no-any-return]


def _decoded_smiles(graph: Graph, vocabulary: GraphVocabulary) -> str:
    """Return the canonical SMILES of a graph, fragments allowed; "" where RDKit refuses it."""
    molecule = graphs.to_molecule(graph.bonds, graph.atoms, vocabulary)
    if Chem.SanitizeMol(molecule, catchErrors=True) != Chem.SANITIZE_NONE:
        return ""
    return graphs.canonical_smiles(molecule)


# --- the cache, and what was set aside ---


def _key(lines: Sequence[tuple[int, str]], vocabulary: GraphVocabulary, order: AtomOrder) -> str:
    content = "\n".join(f"{number} {smiles}" for number, smiles in lines)
    return cache_key(FORMAT, rdkit.__version__, repr(vocabulary), order, content)


def _keep(path: Path, found: Molecules) -> None:
    texts = {name: getattr(found, name) for name in TEXTS}
    texts["skipped"] = [f"{one.line}\t{one.smiles}\t{one.reason}" for one in found.skipped]
    cache.save(path, texts, {name: getattr(found, name) for name in TENSORS})


def _recall(path: Path) -> Molecules | None:
    """Return the content of a cache file; None where it is missing or damaged."""
    kept = cache.load(path, (*TEXTS, "skipped"), TENSORS)
    if kept is None:
        return None
    texts, tensors = kept
    fields = [line.split("\t", 2) for line in texts.pop("skipped") if line]
    if len({len(column) for column in (*texts.values(), *tensors.values())}) != 1:
        return None
    skipped = tuple(SkippedLine(int(line), smiles, reason) for line, smiles, reason in fields)
    bonds, atoms, lossy_flags = (tensors[name] for name in TENSORS)
    return Molecules(texts["smiles"], texts["decoded_smiles"], bonds, atoms, lossy_flags, texts["scaffolds"], skipped)


def _some(skipped: Sequence[SkippedLine]) -> str:
    return "; ".join(f"line {one.line}: {one.reason}" for one in skipped[:MAX_LISTED])


def _set_aside(path: Path, key: str, lines: int, skipped: Sequence[SkippedLine]) -> None:
    """Write the skipped lines to a file, and warn."""
    aside = cache_folder("molecules") / "set-aside" / f"{path.stem}-{key}.tsv"
    table = "line\tsmiles\treason\n" + "".join(f"{one.line}\t{one.smiles}\t{one.reason}\n" for one in skipped)
    where = f"all of them in {aside}" if try_write(aside, table.encode()) else f"{aside} could not be written"
    warnings.warn(
        f"{len(skipped):,} of {lines:,} molecules of {path} were set aside: {_some(skipped)}; {where}",
        SkippedLinesWarning,
        stacklevel=3,
    )
