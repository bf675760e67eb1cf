"""How the reconstruction of an MPGVAE is scored: atoms in the file's, a canonical or a random order, or matched.

    fedlab compare mpgvae-qm9 threads=1 molecules.samples=1000 --seeds 3 --out comparisons/matching --strategies
        "file=fedavg,canonical=fedavg:molecules.atom_order=canonical,random=fedavg:molecules.atom_order=random,matched=fedavg:
        molecules.atom_order=random:molecules.matching=assignment"            (one line, no blanks between the quotes)
    python -m benchmarks.matching comparisons/matching

Bounds are of -log P in nats a molecule, means over test molecules, one draw of the latents each. *Ordered* is of the
graph with its atoms in the order that the variant is trained on; *any order* is of the graph whatever its order, which
is what variants have in common: the bound of the cheapest order that the assignment finds, since P of all orders
together is above that of one. Where no order is favored, P of all of them is P of one times their number, whose
logarithm is printed below the table: the *ordered* bound less that is then the bound of any order. Scores of samples
are those of the runs' last round.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from rich.console import Console
from rich.table import Table

from fedlab.comparison.result import Comparison
from fedlab.errors import ConfigError
from fedlab.evaluation.distances import Floats
from fedlab.inference.latent_space import LatentSpace
from fedlab.models.mpgvae import MPGVAE, Matching
from fedlab.runs.result import Result
from fedlab.seeds import deterministic, seeded

SCORES = ("validity", "uniqueness", "novelty", "valid_unique_novel", "reconstruction")
HEADS = ("ordered", "any order", "valid", "unique", "novel", "product", "reconstruction", "frechet", "ms a step")


@torch.no_grad()
def bound(space: LatentSpace, matching: Matching, molecules: int) -> float:
    """Mean bound over the first test molecules, in the order that the workload gives their atoms."""
    if not isinstance(space.model, MPGVAE):
        raise ConfigError(f"{space.name} learned a {type(space.model).__name__}, and matching is of an MPGVAE")
    trained, space.model.matching = space.model.matching, matching
    total, count = 0.0, 0
    with seeded(space.workload.data_config.seed, "matching"):
        data = space.workload.data(None, "test")
        for batch in data.subsample(min(molecules, len(data))).batches(250):
            total += float(space.model.nll(batch["adjacency"], batch["nodes"]).sum())
            count += len(batch["nodes"])
    space.model.matching = trained
    return total / count


def log_orders(smiles: Sequence[str]) -> float:
    """Mean logarithm of how many different graphs the orders of a molecule's atoms make: n! by its symmetries."""
    found = []
    for text in smiles:
        molecule = Chem.MolFromSmiles(text)
        symmetries = len(molecule.GetSubstructMatches(molecule, uniquify=False, maxMatches=100_000))
        found.append(math.lgamma(molecule.GetNumAtoms() + 1) - math.log(symmetries))
    return float(np.mean(found))


def figures(result: Result, molecules: int) -> list[float]:
    """One run's line, shares in percent."""
    space, score = LatentSpace.open(result.directory), result.score()
    steps = int(result.config["client.steps"]) * len(result.rounds[-1]["clients"]) * (len(result.rounds) - 1)
    return [
        bound(space, "order", molecules),
        bound(space, "assignment", molecules),
        *(100 * score.get(name, np.nan) for name in SCORES),
        score.get("frechet", np.nan),
        1000 * result.seconds().get("clients", 0.0) / steps,
    ]


def table(comparison: Comparison, molecules: int) -> Table:
    """Means over seeds and half their range."""
    found: dict[str, list[list[float]]] = {}
    for cell, result in comparison.results:
        found.setdefault(cell.label, []).append(figures(result, molecules))
    shown = Table(title=f"{comparison.preset}, {molecules:,} test molecules", title_justify="left")
    for head in ("scored against", "seeds", *HEADS):
        shown.add_column(head, justify="left" if head == "scored against" else "right")
    for label, lines in found.items():
        part: Floats = np.array(lines)
        means, halves = part.mean(0), (part.max(0) - part.min(0)) / 2
        shown.add_row(label, str(len(part)), *(f"{m:.1f} ± {h:.1f}" for m, h in zip(means, halves, strict=True)))
    return shown


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="folder of a comparison")
    parser.add_argument("--molecules", type=int, default=1000, help="of the test file")
    options = parser.parse_args()
    with deterministic(1):
        comparison = Comparison.read(options.comparison)
        Console().print(table(comparison, options.molecules))
        space = LatentSpace.open(comparison.results[0][1].directory)
        whole = [meaning for meaning in space.workload.tables()[1].decoded_smiles if meaning][: options.molecules]
        Console().print(f"log of the number of orders of a test molecule, mean: {log_orders(whole):.1f}")


if __name__ == "__main__":
    main()
