"""What the latents of a finished run's model mean: paths between molecules, and directions along which properties grow.

All is done on the CPU with the newest checkpoint. Latents are those of ``GraphGenerator.encode``; graphs come back by
``decode``, molecules by the validity rule of ``fedlab.data.molecules.graphs``. On paths they are the likeliest; on
walks
they are drawn as samples are, where that makes a difference.

**A direction** of a property is the covariance of latents and property over molecules of the training file (the first
component of partial least squares): how latents move on average where the property grows. It is judged by Pearson's
correlation of the property with the latents along it on the test file's molecules, which nobody trained on. Beside it
stands what all of the latents tell linearly: the correlation of a ridge regression's predictions, its penalty chosen
among :data:`PENALTIES` by leave-one-out. Its weights are no direction to walk in: they lie where latents hardly vary,
and graphs on the way do not change. A walk goes from a molecule along the direction, in units of the standard
deviation of the training molecules along it.

**Source**: paths, and walks along a linear model of a property, as in Madhawa et al., GraphNVP, 2019, section 5, who
take the regression's weights. **Departures**: (1) the direction is the covariance; (2) how well it holds on other
molecules, and how often a walk meets a molecule, is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor, nn

from fedlab import workloads
from fedlab.data.molecules import graphs
from fedlab.data.molecules.smiles import Molecules as Table
from fedlab.errors import ConfigError, DataError, RunError
from fedlab.evaluation.distances import Floats
from fedlab.evaluation.molecules import PROPERTIES
from fedlab.models.graph_generator import GraphGenerator
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.workloads.molecules import Molecules

NUM_FIT, NUM_TEST = 2000, 1000  # molecules of the training file and of the test file
NUM_STARTS = 100  # test molecules that a walk begins at
MAX_STD = 4.0  # standard deviations that it goes to either side
PENALTIES = tuple(10.0**power for power in range(-3, 6))
BATCH = 500


@dataclass(frozen=True)
class LatentSpace:
    """A model's latents, with the workload that it learned.

    Attributes
    ----------
    name, round
        Of the run directory, and the round after which the model was as it is.
    """

    workload: Molecules
    model: nn.Module
    name: str
    round: int

    @classmethod
    def open(cls, path: Path) -> LatentSpace:
        """The newest model of a run directory.

        Raises
        ------
        RunError, ConfigError
            When it is none, holds no checkpoint, or learned something else than molecules.
        """
        run = RunDirectory.open(path)
        workload = workloads.make(run.config())
        if not isinstance(workload, Molecules):
            raise ConfigError(f"{run.path} learned {run.config()['workload']}; latents are looked at of molecules")
        if not list((run.path / "checkpoints").glob("*.pt")):
            raise RunError(f"{run.path} holds no checkpoint yet; `fedlab resume {run.path}` continues it")
        newest = run.newest()
        assert newest is not None
        model = workload.model()
        model.load_state_dict(newest[1]["arrays"])
        return cls(workload, model.eval(), run.path.name, newest[0])

    @property
    def generator(self) -> GraphGenerator:
        """The model as what it is."""
        assert isinstance(self.model, GraphGenerator)
        return self.model

    def encode(self, table: Table) -> Tensor:
        """Latents (molecules, dimensions) of graphs."""
        found = []
        for start in range(0, len(table), BATCH):
            rows = slice(start, start + BATCH)
            batch = graphs.one_hot(table.bonds[rows], table.atoms[rows], self.workload.vocabulary)
            found.append(self.generator.encode(*batch))
        return torch.cat(found)

    def encode_smiles(self, smiles: str) -> Tensor:
        """Latents (1, dimensions) of one molecule, atoms in the order that the run's knobs give them.

        Raises
        ------
        DataError
            When it is no molecule of the set.
        """
        try:
            molecule, graph = graphs.parse_smiles(smiles, self.workload.vocabulary)
        except DataError as error:
            raise DataError(f"{smiles}: {error}") from None
        if self.workload.order == "canonical":
            graph = graphs.to_graph(graphs.canonical_order(molecule), self.workload.vocabulary)
        bonds, atoms = graphs.stack_graphs([graph])
        return self.generator.encode(*graphs.one_hot(bonds, atoms, self.workload.vocabulary))

    def decode(self, latent: Tensor, *, sampled: bool = False) -> list[str | None]:
        """Canonical SMILES of latents (batch, dimensions), None for what is no molecule."""
        adjacency, nodes = self.generator.decode(latent, sampled=sampled)
        return graphs.batch_to_smiles(adjacency.argmax(1), nodes.argmax(2), self.workload.vocabulary)

    def interpolate(self, first: str, second: str, steps: int) -> list[str | None]:
        """What decodes at evenly spread points of the line between two molecules' latents, ends included."""
        a, b = self.encode_smiles(first), self.encode_smiles(second)
        shares = torch.linspace(0, 1, steps)[:, None]
        return self.decode((1 - shares) * a + shares * b)


@dataclass(frozen=True)
class Direction:
    """A direction in latent space along which a property grows.

    Attributes
    ----------
    unit
        (dimensions,), of length 1.
    deviation
        Standard deviation of the training molecules' latents along it.
    along, predicted, true
        Of the test molecules (molecules,): latents along it, the regression's prediction, the property.
    """

    name: str
    unit: Tensor
    std: float
    along: Floats
    predicted: Floats
    true: Floats

    @property
    def correlation(self) -> float:
        """Pearson's, of the property with latents along the direction."""
        return float(np.corrcoef(self.along, self.true)[0, 1])

    @property
    def regression(self) -> float:
        """Pearson's, of the property with the regression's prediction."""
        return float(np.corrcoef(self.predicted, self.true)[0, 1])


@dataclass(frozen=True)
class Traversal:
    """What is met along a direction from ``NUM_STARTS`` molecules, at ``MAX_STD`` deviations to either side and between.

    Attributes
    ----------
    steps
        In standard deviations (steps,).
    met
        By start and step, SMILES or None.
    values
        The property of what is met (starts, steps), NaN where it is no molecule.
    """

    steps: Floats
    decoded: Sequence[Sequence[str | None]]
    values: Floats

    @property
    def valid(self) -> Floats:
        """Share of starts with a molecule at each step."""
        return np.asarray(np.isfinite(self.values).mean(0))

    @property
    def means(self) -> Floats:
        """The property's mean at each step over what are molecules, NaN where there is none."""
        counts = np.isfinite(self.values).sum(0)
        return np.where(counts, np.nansum(self.values, 0) / np.maximum(counts, 1), np.nan)


def property_values(smiles: Sequence[str], name: str) -> Floats:
    """A property of ``fedlab.evaluation.molecules`` for molecules that RDKit accepts."""
    return np.array([float(PROPERTIES[name](Chem.MolFromSmiles(one))) for one in smiles])


def fit_direction(space: LatentSpace, name: str) -> Direction:
    """The direction of a property, fitted on training molecules and judged on test molecules."""
    from sklearn.linear_model import RidgeCV  # late: it is slow to import

    of_training, of_test = space.workload.tables()
    training, test = _usable(of_training, NUM_FIT), _usable(of_test, NUM_TEST)
    latents, held_out = space.encode(training).double().numpy(), space.encode(test).double().numpy()
    values = property_values(training.decoded_smiles, name)
    shift = (values - values.mean()) @ (latents - latents.mean(0))  # covariance, times the molecules
    unit = shift / max(np.linalg.norm(shift), 1e-12)
    return Direction(
        name,
        torch.from_numpy(unit).float(),
        float((latents @ unit).std()),
        held_out @ unit,
        np.asarray(RidgeCV(PENALTIES).fit(latents, values).predict(held_out)),
        property_values(test.decoded_smiles, name),
    )


def traverse(space: LatentSpace, along: Direction, steps: int = 17) -> Traversal:
    """Go along a direction from test molecules."""
    starts = space.encode(_usable(space.workload.tables()[1], NUM_STARTS))
    reach = torch.linspace(-MAX_STD, MAX_STD, steps)
    points = starts[:, None] + along.std * reach[:, None] * along.unit  # (starts, steps, dimensions)
    with seeded(space.workload.seed, "walk", along.name):
        found = space.decode(points.flatten(0, 1), sampled=True)
    decoded = [found[row * steps : (row + 1) * steps] for row in range(len(starts))]
    values = np.full((len(starts), steps), np.nan)
    for row, column in zip(*np.nonzero([[one is not None for one in line] for line in decoded]), strict=True):
        values[row, column] = property_values([decoded[row][column] or ""], along.name)[0]
    return Traversal(reach.double().numpy(), decoded, values)


def _usable(table: Table, most: int) -> Table:
    """The first molecules whose graphs are molecules."""
    return table.select([row for row, meaning in enumerate(table.decoded_smiles) if meaning][:most])
