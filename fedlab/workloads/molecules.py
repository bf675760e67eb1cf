"""Molecules: a generative model of molecular graphs, learned from clients with different molecules.

Each molecule of a set's training file has one owner: the server has a small public part, drawn at random, the clients
the rest, divided by scaffold, by size, by clusters of scaffolds, or at random. Each owner tests on a held-out part of
its molecules. The set's test file is the reference for generated molecules only. A deployed client may use a SMILES
file of its own instead of its part (``fedlab join --data FILE``).

``molecules.server=pooled`` gives the server every training molecule of all clients: for the centralized bound only,
with strategies that train on the server (``source_only``). There are no labels; the model is trained by likelihood.

**Source**: data and scores as in Madhawa et al., GraphNVP, 2019. **Departures**: (1) the published split is another one
(Kusner's indices); (2) novelty is counted against the training file, whichever owner's molecules a method has seen.

**Metrics** of a client, on its own held-out molecules: ``loss``, the training loss; ``nll``, a bound of -log P in nats
a molecule, comparable over models and sets of one size. **Of the server**, every ``sample_every`` rounds: those of
``fedlab.evaluation.molecules`` over ``molecules.samples`` graphs at ``molecules.latent_temperature``, with the test
file as reference, and ``reconstruction``, the fraction of as many of its molecules that are decoded from their latents
unchanged. Novelty needs the training file, which the server of a real federation does not have: it is for experiments.
Pictures show generated molecules and their properties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.molecules import graphs, ownership, scaffolds, smiles
from fedlab.data.molecules.graphs import GraphVocabulary
from fedlab.data.molecules.ownership import MoleculeAllocation
from fedlab.data.molecules.scaffolds import MoleculePartition
from fedlab.data.partitioners import MIN_EXAMPLES
from fedlab.data.sources import DataSource
from fedlab.errors import DataError, plural
from fedlab.evaluation import molecule_plots as pictures
from fedlab.evaluation import molecules as scores
from fedlab.files import expand_user
from fedlab.metrics import FRACTION, Metric
from fedlab.models import mpgvae
from fedlab.models.graph_generator import GraphGenerator
from fedlab.models.graphnvp import GraphNVP
from fedlab.models.graphnvp_conditioners import QM9_SIZES, ZINC_SIZES
from fedlab.models.mpgvae import MPGVAE
from fedlab.seeds import seeded
from fedlab.training import Progress, null_progress
from fedlab.workload import Score, WorkloadSpec
from fedlab.workloads import domain_suite
from fedlab.workloads.shards import numbered_names

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Molecules:
    """The workload's options and its methods, see :class:`fedlab.workload.Workload`."""

    loss_columns: ClassVar[tuple[str, ...]] = ("adjacency", "nodes")

    dataset: Literal["qm9", "zinc"] = Field("qm9", description="set of molecules, and what its graphs can hold")
    file: str = Field("", description="a SMILES file to use instead of the set's; a tenth of it is the test file")
    network: Literal["graphnvp", "mpgvae"] = Field("graphnvp", description="family of the model")
    atom_order: Literal["file", "canonical", "random"] = Field(
        "file", description="of the atoms: as in the file, as in canonical SMILES, or drawn anew for each batch"
    )
    lossy: Literal["keep", "drop"] = Field(
        "keep", description="molecules with charges or unpaired electrons: keep their neutral graphs, or leave them out"
    )
    server: Literal["public", "pooled"] = Field(
        "public", description="data of the server: its public part, or every molecule, for the centralized bound only"
    )
    server_fraction: float = Field(
        0.05, gt=0, lt=1, description="fraction of the training file that is the server's public part"
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="fraction of each owner's molecules that it tests on")
    adjacency_layers: int = Field(0, ge=0, description="graphnvp: coupling layers of the bonds; 0: the paper's")
    node_layers: int = Field(0, ge=0, description="graphnvp: coupling layers of the atoms; 0: the paper's")
    affine: bool = Field(False, description="graphnvp: adjacency layers scale as well as shift")
    noise: float = Field(0.9, gt=0, lt=1, description="graphnvp: width of the noise that makes graphs continuous")
    width: int = Field(64, ge=1, description="mpgvae: of nodes and edges")
    latent: int = Field(32, ge=1, description="mpgvae: numbers of a graph's latents")
    message_steps: int = Field(3, ge=1, description="mpgvae: message steps of the encoder, and of the decoder")
    beta: float = Field(1.0, ge=0, allow_inf_nan=False, description="mpgvae: weight of the KL term after its warm-up")
    warmup: int = Field(0, ge=0, description="mpgvae: a client's steps over which the KL term's weight rises from 0")
    matching: Literal["order", "assignment"] = Field(
        "order", description="mpgvae: score decoded places against atoms as they stand, or in the cheapest order"
    )
    decode_temperature: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="mpgvae: how far decoded atoms and bonds are drawn from their probabilities; 0: the likeliest",
    )
    latent_temperature: float = Field(
        0.8, gt=0, allow_inf_nan=False, description="of the latents that samples are drawn from"
    )
    samples: int = Field(500, ge=0, description="graphs drawn once a round for the scores; 0: none are taken")
    pictures: bool = Field(True, description="draw sampled molecules and their properties, once a round")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients: the scheme of the partition and a number."""
        return numbered_names(self.partition, self.data_config.num_shards)

    @property
    def partition(self) -> str:
        """Scheme by which molecules are divided among clients."""
        return self.data_config.partition_kind("scaffold", "iid", "size", "dirichlet")

    @property
    def vocabulary(self) -> GraphVocabulary:
        """Atoms and bonds of the set's graphs, and their largest size."""
        return smiles.MOLECULE_SETS[self.dataset].vocabulary

    @property
    def unused_options(self) -> frozenset[str]:
        """See :func:`fedlab.workload.unused_options`."""
        alpha = set() if self.partition == "dirichlet" else {"data.alpha"}
        return frozenset({"data.clients_per_domain", "data.test_classes"} | alpha)

    def model(self) -> nn.Module:
        """Return a fresh :class:`fedlab.models.graph_generator.GraphGenerator`."""
        return FAMILIES[self.network](self)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return graphs as ``adjacency`` (4, N, N) and ``nodes`` (N, F), one-hot; the server's "test" is the test file.

        Raises
        ------
        DataError, ConfigError
            When files are missing or hold nothing, there is no such partition or split, or an owner gets too few.
        """
        domain_suite.check_partition(partition, self.clients)
        if split not in ("train", "test"):
            raise DataError(f"no split {split!r}; there are 'train' and 'test'")
        if partition is not None and self.data_config.client_folder:
            own = _own(expand_user(self.data_config.client_folder), self)
            rows = torch.arange(len(own))
            return self._graphs(
                own, scaffolds.train_test_rows(rows, self.held_out, self.data_config.seed, "own")[split == "test"]
            )
        found = _holdings(self)
        if partition is not None:
            rows = found.clients[partition][split == "test"]
        elif split == "test":
            return self._graphs(found.reference, torch.arange(len(found.reference)))
        else:
            parts = [train for train, _ in found.clients] if self.server == "pooled" else []
            rows = torch.cat([found.server, *parts])
        return self._graphs(found.training, rows)

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        if partition is not None and self.data_config.client_folder:
            own = expand_user(self.data_config.client_folder)
            return [DataSource(own.name, len(self.data(partition, "train")), str(own.parent))]
        examples = len(_holdings(self).training)
        if self.file:
            file = expand_user(self.file)
            return [DataSource(file.name, examples, str(file.parent))]
        return [smiles.molecule_source(self.dataset, self.data_config.root_folder, examples)]

    def _graphs(self, molecules: smiles.Molecules, rows: Tensor) -> ArrayDataset:
        def read(batch: Batch) -> Batch:
            bonds, atoms = batch["adjacency"], batch["nodes"]
            if self.atom_order == "random":
                bonds, atoms = graphs.permute_atoms(bonds, atoms, self.vocabulary.no_atom)
            adjacency, nodes = graphs.one_hot(bonds, atoms, self.vocabulary)
            return {"adjacency": adjacency, "nodes": nodes}

        return ArrayDataset({"adjacency": molecules.bonds[rows], "nodes": molecules.atoms[rows]}, read)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's own loss, a scalar."""
        return _generator(model).loss(batch["adjacency"], batch["nodes"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return ``loss`` and ``nll``, means over the molecules, with noise from a stream of its own."""
        model.eval()
        device, generator = next(model.parameters()).device, _generator(model)
        losses, bounds = 0.0, 0.0
        with seeded(self.data_config.seed, "test noise"):
            for batch in data.batches(EVALUATION_BATCH):
                adjacency, nodes = batch["adjacency"].to(device), batch["nodes"].to(device)
                losses += float(generator.loss(adjacency, nodes)) * len(nodes)
                bounds += float(generator.nll(adjacency, nodes).double().sum())
        return {"loss": losses / len(data), "nll": bounds / len(data)}

    def score(self, model: nn.Module, progress: Progress = null_progress) -> Score:
        """Return metrics and pictures of a model's samples, from torch's current random stream."""
        if not self.samples:
            return Score()
        drawn = self.draw(model, self.samples)
        valid, reference = [one for one in drawn if one], _holdings(self).reference_smiles
        metrics = {**scores.validity_metrics(drawn, self.known()), **scores.distribution_metrics(valid, reference)}
        metrics |= self.reconstruction_rate(model, self.samples)
        if not self.pictures:
            return Score(metrics)
        drawings = {
            "molecules": pictures.sample_grid(drawn),
            "properties": pictures.property_histograms(valid, reference),
        }
        return Score(metrics, drawings)

    @torch.no_grad()
    def reconstruction_rate(self, model: nn.Module, count: int) -> dict[str, float]:
        """Return ``reconstruction``, the fraction of molecules that are decoded from their latents unchanged.

        They are the test file's first connected ones; without any the result is empty.
        """
        reference = _holdings(self).reference
        rows = [row for row, meaning in enumerate(reference.decoded_smiles) if meaning and "." not in meaning][:count]
        if not rows:
            return {}
        adjacency, nodes = graphs.one_hot(reference.bonds[rows], reference.atoms[rows], self.vocabulary)
        generator, device = _generator(model.eval()), next(model.parameters()).device
        back, its = generator.decode(generator.encode(adjacency.to(device), nodes.to(device)))
        found = graphs.batch_to_smiles(back.argmax(1), its.argmax(2), self.vocabulary)
        same = sum(one == reference.decoded_smiles[row] for row, one in zip(rows, found, strict=True))
        return {"reconstruction": same / len(rows)}

    def tables(self) -> tuple[smiles.Molecules, smiles.Molecules]:
        """Return all molecules of the training file, and those of the test file."""
        found = _holdings(self)
        return found.training, found.reference

    def known(self) -> frozenset[str]:
        """Return the canonical SMILES of the training file's graphs, which are not novel."""
        return _holdings(self).training_smiles

    def draw(self, model: nn.Module, count: int, *, corrected: bool = False) -> list[str | None]:
        """Return the canonical SMILES of graphs sampled from a model, None for an invalid one."""
        adjacency, nodes = _generator(model.eval()).sample(count, self.latent_temperature)
        return graphs.batch_to_smiles(adjacency.argmax(1), nodes.argmax(2), self.vocabulary, corrected=corrected)


def _generator(model: nn.Module) -> GraphGenerator:
    assert isinstance(model, GraphGenerator)
    return model


def _graphnvp(workload: Molecules) -> nn.Module:
    sizes = QM9_SIZES if workload.dataset == "qm9" else ZINC_SIZES
    return GraphNVP(
        replace(
            sizes,
            adjacency_layers=workload.adjacency_layers or sizes.adjacency_layers,
            node_layers=workload.node_layers or sizes.node_layers,
        ),
        affine=workload.affine,
        noise=workload.noise,
    )


def _mpgvae(workload: Molecules) -> nn.Module:
    vocabulary = workload.vocabulary
    return MPGVAE(
        mpgvae.MPGVAESizes(
            vocabulary.size, vocabulary.no_atom + 1, workload.width, workload.latent, workload.message_steps
        ),
        beta=workload.beta,
        warmup=workload.warmup,
        matching=workload.matching,
        decode_temperature=workload.decode_temperature,
    )


FAMILIES: Mapping[str, Callable[[Molecules], nn.Module]] = {"graphnvp": _graphnvp, "mpgvae": _mpgvae}


@lru_cache(maxsize=8)
def _holdings(workload: Molecules) -> MoleculeAllocation:
    training, reference = _files(workload)
    if workload.lossy == "drop":
        training, reference = ownership.drop_lossy(training), ownership.drop_lossy(reference)
    return ownership.allocate(
        training,
        reference,
        workload.clients,
        by=cast(MoleculePartition, workload.partition),
        alpha=workload.data_config.alpha,
        server_fraction=workload.server_fraction,
        test_fraction=workload.held_out,
        seed=workload.data_config.seed,
        no_atom=workload.vocabulary.no_atom,
        min_examples=workload.data_config.min_examples,
    )


def _own(path: Path, workload: Molecules) -> smiles.Molecules:
    """Return the molecules of a user's file.

    Raises
    ------
    DataError
        When it has too few molecules.
    """
    found = smiles.load_molecules(path, workload.vocabulary, workload.data_config.max_examples, _order(workload))
    found = ownership.drop_lossy(found) if workload.lossy == "drop" else found
    if len(found) < 2 * MIN_EXAMPLES:
        raise DataError(
            f"{path} has {plural(len(found), 'molecule')} that can be used; at least {2 * MIN_EXAMPLES} are needed"
        )
    return found


def _order(workload: Molecules) -> smiles.AtomOrder:
    return "canonical" if workload.atom_order == "canonical" else "file"


def _files(workload: Molecules) -> tuple[smiles.Molecules, smiles.Molecules]:
    """Return the molecules of the training file and of the test file."""
    if workload.file:
        found = _own(expand_user(workload.file), workload)
        train, test = scaffolds.train_test_rows(torch.arange(len(found)), 0.1, workload.data_config.seed, "test file")
        return found.select(train.tolist()), found.select(test.tolist())
    paths = [
        smiles.molecule_file(workload.dataset, split, workload.data_config.root_folder) for split in ("train", "test")
    ]
    train_file, test_file = (
        smiles.load_molecules(path, workload.vocabulary, workload.data_config.max_examples, _order(workload))
        for path in paths
    )
    return train_file, test_file


MOLECULES = (
    Metric("samples", role="hidden"),
    Metric("valid", "valid molecules", order=9),
    Metric("valid_unique_novel", "valid, unique and novel", FRACTION, higher_is_better=True, order=1),
    Metric("validity", unit=FRACTION, higher_is_better=True, order=2),
    Metric("uniqueness", unit=FRACTION, higher_is_better=True, order=3),
    Metric("novelty", unit=FRACTION, higher_is_better=True, order=4),
    Metric("reconstruction", "reconstructed from latents", FRACTION, higher_is_better=True, order=5),
    Metric("frechet", "Fréchet distance", higher_is_better=False, order=6),
    Metric("nll", "negative log-likelihood", higher_is_better=False, order=7),
    Metric("distance_*", higher_is_better=False, order=8),
    Metric("wasserstein_*", higher_is_better=False, order=8),
)

SPEC = WorkloadSpec(Molecules, primary_metric="valid_unique_novel", metrics=MOLECULES)
