"""The latent space of a finished run's model: paths between molecules, and directions along which properties grow.

All is done on the CPU with the newest checkpoint. Latents are those of ``GraphGenerator.encode``; graphs are decoded by
``decode``, molecules by the validity rule of ``fedlab.data.molecules.graphs``. On paths they are the likeliest; on
traversals they are sampled as samples are, where that makes a difference.

**A direction** of a property is the covariance of latents and property over molecules of the training file (the first
component of partial least squares): how latents move on average where the property grows. It is judged by Pearson's
correlation of the property with the latents along it on the test file's molecules, which are not trained on. Beside it
is the linear information of all latents: the correlation of a ridge regression's predictions, its penalty chosen among
:data:`PENALTIES` by leave-one-out. Its weights are no direction to follow: they lie where latents hardly vary, and
graphs along them do not change. A traversal follows the direction from a molecule, in units of the standard deviation
of the training molecules along it.

**Source**: paths, and walks along a linear model of a property, as in Madhawa et al., GraphNVP, 2019, section 5, who
take the regression's weights. **Departures**: (1) the direction is the covariance; (2) how well it holds on other
molecules, and how often a traversal decodes to a molecule, is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rdkit import Chem
from torch import Tensor, nn

from fedlab.data.molecules import graphs
from fedlab.data.molecules.smiles import Molecules as Table
from fedlab.errors import ConfigError, DataError, RunError
from fedlab.evaluation.distances import Floats
from fedlab.evaluation.molecules import PROPERTIES
from fedlab.models.graph_generator import GraphGenerator
from fedlab.registry import load_run_config
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
    """A model's latents, with the workload that it was trained on.

    Attributes
    ----------
    name, round
        Name of the run directory, and the round of the checkpoint.
    """

    workload: Molecules
    model: nn.Module
    name: str
    round: int

    @classmethod
    def open(cls, path: Path) -> LatentSpace:
        """Return the latent space of a run directory's newest model.

        Raises
        ------
        RunError, ConfigError
            When it is no run directory, holds no checkpoint, or learned something else than molecules.
        """
        run = RunDirectory.open(path)
        config = load_run_config(run.config_file)
        workload = config.workload
        if not isinstance(workload, Molecules):
            raise ConfigError(f"{run.path} learned {config.run.workload}; latents are looked at of molecules")
        newest = run.checkpoints.latest()
        if newest is None:
            raise RunError(f"{run.path} holds no checkpoint yet; `fedlab resume {run.path}` continues it")
        model = workload.model()
        model.load_state_dict(newest[1]["arrays"])
        return cls(workload, model.eval(), run.path.name, newest[0])

    @property
    def generator(self) -> GraphGenerator:
        """Return the model as a generator of graphs."""
        assert isinstance(self.model, GraphGenerator)
        return self.model

    def encode(self, table: Table) -> Tensor:
        """Return latents (molecules, dimensions) of graphs."""
        found = []
        for start in range(0, len(table), BATCH):
            rows = slice(start, start + BATCH)
            batch = graphs.one_hot(table.bonds[rows], table.atoms[rows], self.workload.vocabulary)
            found.append(self.generator.encode(*batch))
        return torch.cat(found)

    def encode_smiles(self, smiles: str) -> Tensor:
        """Return latents (1, dimensions) of one molecule, atoms in the order of the run's options.

        Raises
        ------
        DataError
            When it is no molecule of the set.
        """
        try:
            molecule, graph = graphs.parse_smiles(smiles, self.workload.vocabulary)
        except DataError as error:
            raise DataError(f"{smiles}: {error}") from None
        if self.workload.atom_order == "canonical":
            graph = graphs.to_graph(graphs.canonical_order(molecule), self.workload.vocabulary)
        bonds, atoms = graphs.stack_graphs([graph])
        return self.generator.encode(*graphs.one_hot(bonds, atoms, self.workload.vocabulary))

    def decode(self, latent: Tensor, *, sampled: bool = False) -> list[str | None]:
        """Return canonical SMILES of latents (batch, dimensions), None where a graph is no molecule."""
        adjacency, nodes = self.generator.decode(latent, sampled=sampled)
        return graphs.batch_to_smiles(adjacency.argmax(1), nodes.argmax(2), self.workload.vocabulary)

    def interpolate(self, first: str, second: str, steps: int) -> list[str | None]:
        """Return the molecules decoded at ``steps`` equally spaced points between two latents, ends included.

        Raises
        ------
        DataError
            When one of the two is no molecule of the set.
        """
        a, b = self.encode_smiles(first), self.encode_smiles(second)
        fractions = torch.linspace(0, 1, steps)[:, None]
        return self.decode((1 - fractions) * a + fractions * b)


@dataclass(frozen=True)
class Direction:
    """A direction in latent space along which a property grows.

    Attributes
    ----------
    unit
        (dimensions,), of length 1.
    std
        Standard deviation of the training molecules' latents along it.
    along, predicted, true
        Values of the test molecules (molecules,): latents along it, the regression's prediction, the property.
    """

    name: str
    unit: Tensor
    std: float
    along: Floats
    predicted: Floats
    true: Floats

    @property
    def correlation(self) -> float:
        """Return Pearson's correlation of the property with latents along the direction."""
        return float(np.corrcoef(self.along, self.true)[0, 1])

    @property
    def regression(self) -> float:
        """Return Pearson's correlation of the property with the regression's prediction."""
        return float(np.corrcoef(self.predicted, self.true)[0, 1])


@dataclass(frozen=True)
class Traversal:
    """Molecules decoded along a direction from ``NUM_STARTS`` molecules, up to ``MAX_STD`` deviations to either side.

    Attributes
    ----------
    steps
        Positions (steps,), in standard deviations.
    decoded
        SMILES or None, by start and step.
    values
        The property of the decoded molecules (starts, steps), NaN where a graph is no molecule.
    """

    steps: Floats
    decoded: Sequence[Sequence[str | None]]
    values: Floats

    @property
    def valid(self) -> Floats:
        """Return the fraction of starts with a molecule at each step, (steps,)."""
        return np.asarray(np.isfinite(self.values).mean(0))

    @property
    def means(self) -> Floats:
        """Return the mean property over the valid molecules of each step (steps,); NaN where none is valid."""
        counts = np.isfinite(self.values).sum(0)
        return np.where(counts, np.nansum(self.values, 0) / np.maximum(counts, 1), np.nan)


def property_values(smiles: Sequence[str], name: str) -> Floats:
    """Return a property of ``fedlab.evaluation.molecules``, (molecules,), for molecules that RDKit accepts."""
    return np.array([float(PROPERTIES[name](Chem.MolFromSmiles(one))) for one in smiles])


def fit_direction(space: LatentSpace, name: str) -> Direction:
    """Return the direction of a property, fitted on training molecules and judged on test molecules."""
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
    """Return the molecules along a direction from test molecules, at ``steps`` positions."""
    starts = space.encode(_usable(space.workload.tables()[1], NUM_STARTS))
    reach = torch.linspace(-MAX_STD, MAX_STD, steps)
    points = starts[:, None] + along.std * reach[:, None] * along.unit  # (starts, steps, dimensions)
    with seeded(space.workload.data_config.seed, "walk", along.name):
        found = space.decode(points.flatten(0, 1), sampled=True)
    decoded = [found[row * steps : (row + 1) * steps] for row in range(len(starts))]
    values = np.full((len(starts), steps), np.nan)
    for row, column in zip(*np.nonzero([[one is not None for one in line] for line in decoded]), strict=True):
        values[row, column] = property_values([decoded[row][column] or ""], along.name)[0]
    return Traversal(reach.double().numpy(), decoded, values)


def _usable(table: Table, most: int) -> Table:
    """Return the first molecules whose graphs are molecules."""
    return table.select([row for row, meaning in enumerate(table.decoded_smiles) if meaning][:most])
