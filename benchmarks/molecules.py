"""What molecules cost: training, sampling and parsing a second, batched against one molecule at a time; round trips.

    python -m benchmarks.molecules
    python -m benchmarks.molecules --batch 256 --threads 2
    python -m benchmarks.molecules --network mpgvae
    python -m benchmarks.molecules --round-trips          # every molecule of FEDLAB_DATA, or the embedded ones

Both sides of a ratio come from one run on one machine. The loop trains with gradients added up over single molecules
(in eval mode: a batch norm learns nothing from one), samples one at a time, and parses in one process.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import torch
from rdkit import Chem
from rich.console import Console
from rich.table import Table

from fedlab.data.digits.datasets import data_root
from fedlab.data.molecules import graphs, smiles
from fedlab.data.molecules.graphs import QM9
from fedlab.errors import DataError
from fedlab.workloads.molecules import Molecules


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, after one that warms up."""
    work()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def speed(network: str, batch: int, looped: int, threads: int) -> Table:
    """Molecules a second of a family's model of QM9 with its usual sizes, and of the parser."""
    torch.set_num_threads(threads)
    found = smiles.load_molecules(smiles.molecule_file("qm9", "train", None), QM9)
    adjacency, nodes = graphs.one_hot(found.bonds[:batch], found.atoms[:batch], QM9)
    model: Any = Molecules(network=network).model()

    def train(rows: range, eval_mode: bool) -> None:
        model.train(not eval_mode)
        for row in rows:
            size = batch if not eval_mode else 1
            model.loss(adjacency[row : row + size], nodes[row : row + size]).backward()
        model.zero_grad()

    table = Table(title=f"molecules a second, {type(model).__name__} for QM9, batches of {batch}, {threads} threads")
    for head in ("what", "one by one", "at once", "ratio"):
        table.add_column(head, justify="left" if head == "what" else "right")

    def row(what: str, one: float, many: float) -> None:
        table.add_row(what, f"{one:,.0f}", f"{many:,.0f}", f"{many / one:.1f}")

    one = looped / seconds(lambda: train(range(looped), True))
    row("training, forward and back", one, batch / seconds(lambda: train(range(1), False)))
    model.eval()
    one = looped / seconds(lambda: [model.sample(1) for _ in range(looped)])
    row("sampling", one, batch / seconds(lambda: model.sample(batch)))
    lines = [(number, text) for number, text in enumerate(found.smiles, start=1)]
    chunks = [lines[start : start + 500] for start in range(0, len(lines), 500)]
    one = len(lines) / seconds(lambda: smiles.parse_lines(lines, QM9, "file"))
    task = joblib.delayed(smiles.parse_lines)
    many = len(lines) / seconds(lambda: joblib.Parallel(n_jobs=-1)(task(chunk, QM9, "file") for chunk in chunks))
    row(f"SMILES to graphs, {joblib.cpu_count()} cores", one, many)
    return table


def outcome(text: str, graph: graphs.Graph, vocabulary: graphs.GraphVocabulary) -> str:
    """Return how one molecule comes back."""
    molecule = graphs.to_molecule(graph.bonds, graph.atoms, vocabulary)
    if Chem.SanitizeMol(molecule, catchErrors=True) != Chem.SANITIZE_NONE:
        return "no molecule"
    return "same" if graphs.canonical_smiles(molecule) == text else "another"


def round_trips(root: Path | None) -> Table:
    """Every molecule of every file: what its graph does not hold, and how it comes back."""
    table = Table(title=f"SMILES -> graph -> canonical SMILES without stereochemistry, {root or 'embedded'}")
    for head in ("file", "not held", "same", "another", "no molecule"):
        table.add_column(head, justify="left" if head in ("file", "not held") else "right")
    for (name, split), file in smiles.FILES.items():
        vocabulary = smiles.MOLECULE_SETS[name].vocabulary
        try:
            found = smiles.load_molecules(smiles.molecule_file(name, split, root), vocabulary)
        except DataError as missing:
            table.add_row(file, str(missing))
            continue
        counts: Counter[tuple[str, str]] = Counter()
        rows = zip(found.smiles, found.bonds.numpy(), found.atoms.numpy(), found.lossy_flags.tolist(), strict=True)
        for text, bonds, atoms, lossy_flags in rows:
            came = outcome(text, graphs.Graph(bonds, atoms, lossy_flags), vocabulary)
            counts[", ".join(graphs.flag_names(lossy_flags)) or "nothing lost", came] += 1
        for names in sorted({names for names, _ in counts}):
            figures = [f"{counts[names, came]:,}" for came in ("same", "another", "no molecule")]
            table.add_row(file, names, *figures)
        table.add_section()
    return table


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="graphnvp", help="graphnvp or mpgvae")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--looped", type=int, default=16, help="molecules that the loops are timed on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round-trips", action="store_true")
    parser.add_argument("--data-root", default="", help="folder of the full sets (default: FEDLAB_DATA)")
    options = parser.parse_args()
    if options.round_trips:
        Console().print(round_trips(data_root(options.data_root)))
    else:
        Console().print(speed(options.network, options.batch, options.looped, options.threads))


if __name__ == "__main__":
    main()
